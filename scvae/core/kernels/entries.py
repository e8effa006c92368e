"""The compiled CPU kernels by name, float32: what takes the time of a training step, in one pass.

Each is compiled when it is first called for, and kept on disk. What is kept is renewed when the
file of an entry changes, not when a file that it imports from does: after an edit here, remove
__pycache__.
"""

from scvae.core.kernels import counts, logarithms, poisson, products

ENTRIES = {
    "nb": counts.nb,
    "zinb": counts.zinb,
    "poisson": poisson.poisson,
    "product": products.product,
    "csr_product": products.csr_product,
    "outer": products.outer,
    "scaled_log1p": logarithms.scaled_log1p,
    "csr_scaled_log1p": logarithms.csr_scaled_log1p,
}
