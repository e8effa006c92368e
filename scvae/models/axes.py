r"""The axes of the embedding: the latent space in units of expression.

The prior makes every latent direction equally wide, whether it moves a thousand genes or three; it
whitens. Distances between posterior means then count noise as much as cell types, and k-means
splits the type with the most cells. The axes undo this. With the decoded expression

.. math:: \phi_g(z) = \log(1 + 10^4 \rho_g(z)) / \sigma_g,

averaged over batches and divided by each gene's standard deviation in the data, and its best linear
approximation :math:`\phi(z) \approx a + J z` over posterior samples of the cells,

.. math:: J^T J = U S^2 U^T, \qquad \text{embedding} = S\,U^T z .

Distances in the embedding are distances of decoded expression, and columns are sorted by how much
of it they move. It is a linear map of z: what the latent space holds and the decoder uses, the
embedding holds. Where the decoder is linear, these are the principal components, as posterior means
are the whitened ones (Tipping and Bishop, "Probabilistic principal component analysis", 1999).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from scvae.core.vae import VAE
from scvae.data.cells import Cells, Dataset
from scvae.models.rna import Decoder

PER = 1e4  # counts per cell in log(1 + x)
MOST_VALUES = 2**25  # cells x genes decoded at once: 128 MiB
SMALLEST_DEVIATION = 1e-2  # of a gene: one that hardly varies is not to weigh the most


def linear_axes(z: Tensor, expression: Tensor) -> Tensor:
    """Return the map ``(d, d)`` from latent vectors to the embedding, ``z @ axes``.

    Parameters
    ----------
    z
        Latent vectors of n cells, ``(n, d)``.
    expression
        Their decoded expression, each gene in units of its standard deviation, ``(n, g)``.

    Returns
    -------
    Tensor
        In units such that the embedding's squared distances are squared distances of expression per
        gene. The sign of each axis makes its largest entry positive.
    """
    # On the CPU, whose solver takes latents without variance, and by "gelsd": the default driver
    # gave different last digits on equal input.
    centred = (z - z.mean(0)).cpu().double()
    width = centred.std(0).clamp(min=1e-12)
    target = (expression - expression.mean(0)).cpu().double()
    slope = torch.linalg.lstsq(centred / width, target, driver="gelsd").solution / width[:, None]
    variances, directions = torch.linalg.eigh(slope @ slope.T / expression.shape[1])
    axes = directions.flip(1) * variances.flip(0).clamp(min=0).sqrt()
    largest = axes.abs().argmax(0)
    return (axes * axes.gather(0, largest[None]).sign()).to(z.dtype).contiguous()


def _deviation(cells: Cells) -> Tensor:
    """Return every gene's standard deviation of log(1 + counts per 10,000), ``(g,)``."""
    return torch.log1p(cells.x * torch.exp(-cells.log_library) * PER).std(0)


@torch.no_grad()
def expression_axes(vae: VAE, dataset: Dataset, rows: Tensor, generator: Generator) -> Tensor:
    """Return the axes of a trained model, from as many of the given rows as fit in memory.

    Samples from the posterior, not its means: along a latent that the model does not use they are
    all noise, the decoder does not follow them, and the axes leave it out.
    """
    decoder = vae.likelihood
    assert isinstance(decoder, Decoder)
    most = max(MOST_VALUES // decoder.a.n_genes, 10 * decoder.a.n_latent)
    order = torch.randperm(len(rows), generator=generator, device=generator.device)
    cells = dataset.cells(rows[order[:most].to(rows.device)])
    z = vae.encode(cells).rsample(generator=generator)
    batches = range(decoder.a.n_batches) if decoder.a.n_batches > 1 else ()
    phi = torch.log1p(PER * decoder.expression(z, cells.s, batches))
    phi /= _deviation(cells).clamp(min=SMALLEST_DEVIATION)
    return linear_axes(z[:, : decoder.a.n_latent], phi).to(rows.device)
