"""All speed plumbing: compiled kernels, how threads share them, and what CUDA runs instead.

`scvae.core.rows` and `scvae.core.products` choose among them. `run` gives a kernel of the CPU its
matrices and threads, once `layouts` has found that they fit; `entries` compiles; `cuda` is Triton.
Nothing is compiled before it is asked for.
"""
