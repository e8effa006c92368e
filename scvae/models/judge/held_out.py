"""What the held-out cells say of a trained model: the terms of their ELBO, and latents in use."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from scvae.core.networks import evaluating
from scvae.core.vae import VAE
from scvae.data.hold.cells import Dataset
from scvae.data.hold.several import Datasets
from scvae.models.keep.record import HeldOut
from scvae.models.network import Prior

LEAST_VARIANCE = 0.01  # of an active dimension, as a share of the prior's (Burda et al., 2016)


def active_dimensions(loc: Tensor, prior_variance: Tensor) -> int | None:
    r"""Return how many latent dimensions tell cells apart; None for fewer than two cells.

    .. math:: \mathrm{Var}_n\,E_{q(z \mid x_n)}[z_d] > 0.01\,\mathrm{Var}_{p(z)}[z_d]

    Under N(0, I) the criterion of Burda, Grosse and Salakhutdinov ("Importance weighted
    autoencoders", ICLR 2016), which supposes a prior variance of 1. A learned prior may have any,
    and a latent space drawn twice as large would not be more active.

    Parameters
    ----------
    loc
        Posterior mean of every cell, ``(n, d)``.
    prior_variance
        Variance of every dimension under the prior, ``(d,)``.
    """
    if len(loc) < 2:
        return None
    return int((loc.double().var(0) > LEAST_VARIANCE * prior_variance.double()).sum())


@torch.no_grad()
def measure_held_out(
    vae: VAE, dataset: Dataset | Datasets, rows: Tensor, size: int, n_latent: int
) -> HeldOut:
    """Return the terms of the ELBO at KL weight 1 and the active dimensions of the given cells.

    One pass with one sample a cell, from the noise that chose the weights (`scvae.train.loop`):
    the terms add up to the recorded ELBO. No random state is read or changed.

    Parameters
    ----------
    rows
        Numbers of the cells, in the order of the evaluations.
    size
        Cells of a minibatch, as in the evaluations.
    n_latent
        Latents, without the library size.

    Returns
    -------
    HeldOut
        Means over cells, in nats, and `active_dimensions`.
    """
    prior = vae.prior
    assert isinstance(prior, Prior)
    generator = Generator(dataset.device).manual_seed(0)
    reconstruction = kl = torch.zeros((), dtype=torch.float64, device=dataset.device)
    means = []
    with evaluating(vae):
        for cells in dataset.minibatches(rows, size):
            terms = vae.terms(cells, generator=generator)
            reconstruction = reconstruction + terms.reconstruction.double().sum()
            kl = kl + terms.kl.double().sum()
            means.append(terms.q.mean[:, :n_latent])
        variance = prior.of_z(replace(cells, label=None)).variance[0]  # of p(z), of all labels
    return HeldOut(
        reconstruction.item() / len(rows),
        kl.item() / len(rows),
        active_dimensions(torch.cat(means), variance),
    )
