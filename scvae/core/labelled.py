r"""A prior over latents and labels together: a mixture whose components say which labels they bear.

.. math:: p(z, y) = \sum_c w_c\,\pi_{cy}\,N(z; \mu_c, \mathrm{diag}\,\sigma_c^2), \qquad
          \sum_y p(z, y) = p(z)

A row with a label has log p(z, y) in its bound, which then is one on log p(x, y); a row without
has log p(z), so that both kinds are learned from at once (Kingma, Rezende, Mohamed and Welling,
"Semi-supervised learning with deep generative models", NeurIPS 2014). As no :math:`\pi_{cy}` is 0,
a label that is wrong costs its row some nats, and forces it nowhere. How many can be bounded by m:

.. math:: p(y \mid c) = (1 - e^{-m})\,\pi_{cy} + e^{-m}

as if one row in :math:`e^m` had a label that says nothing of it. Where x is farther from what the
label wants than that, its gradient vanishes, and no network learns such a label by heart.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Distribution

from scvae.core.batch import Minibatch
from scvae.core.distributions import Mixture
from scvae.core.priors import MixtureOfGaussians

WRONG = 0.05  # share of the labels of a component that are others than its own, at the start


class LabelledMixture(nn.Module):
    r"""Return p(z, y) of every row whose label is known, and p(z) of the others.

    At the start there is one component for every label, which bears it with probability
    1 - `wrong`; the others bear all labels alike. Which they come to bear, and how often labels are
    wrong, is learned with everything else.

    Parameters
    ----------
    n_latent, n_components, n_labels
        Latent dimensions, Gaussians in the mixture, and labels, at most as many.
    wrong
        Between 0 and 1.
    times
        How many times every label is taken to have been said, each time by itself: with k of them
        :math:`\pi_{cy}^k` stands for :math:`\pi_{cy}`. One label weighs little beside a thousand
        entries of x that say something else.
    most
        Nats that a label, with all its times, can cost its row: above 0, or infinity.
    generator
        Source of the initial means.

    Examples
    --------
    >>> prior, z = LabelledMixture(2, n_components=10, n_labels=3), torch.zeros(5, 2)
    >>> batch = Batch(torch.ones(5, 64), label=torch.tensor([0, 1, 2, -1, -1]))
    >>> prior(batch).log_prob(z).shape, prior.probabilities(z).shape
    (torch.Size([5]), torch.Size([5, 3]))
    >>> prior.log_label(batch.label).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        n_latent: int,
        n_components: int,
        n_labels: int,
        *,
        wrong: float = WRONG,
        times: float = 1.0,
        most: float = math.inf,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= n_labels <= n_components:
            raise ValueError(f"n_labels={n_labels}, but it must be 1 to {n_components} components")
        if not 0 < wrong < 1:
            raise ValueError(f"wrong={wrong}, but it must be between 0 and 1")
        if not most > 0:
            raise ValueError(f"most={most}, but a label costs at most more than 0 nats")
        self.mixture = MixtureOfGaussians(n_latent, n_components, generator=generator)
        own = math.log(1 - wrong) - math.log(wrong / max(1, n_labels - 1))
        is_own = torch.eye(n_components, n_labels, dtype=torch.float32)
        self.label_logits = nn.Parameter(own * is_own)
        self.times, self.most = times, most

    def forward(self, batch: Minibatch) -> Mixture | WithLabel:
        p: Mixture = self.mixture(batch)
        label: Tensor | None = getattr(batch, "label", None)
        return p if label is None else WithLabel(p, self.log_label(label))

    def log_label(self, label: Tensor) -> Tensor:
        """Return log p(y | c) of labels ``(n,)``, all times, ``(n, c)``; 0 where a label is not
        known."""
        each = torch.log_softmax(self.label_logits, dim=-1).T[label.clamp(min=0)]
        heard = self.times * each + math.log(-math.expm1(-self.most))
        bounded = torch.logaddexp(heard, torch.full_like(heard, -self.most))
        return torch.where(label[:, None] >= 0, bounded, 0.0)

    def probabilities(self, z: Tensor) -> Tensor:
        r"""Return :math:`p(y \mid z) = \sum_c p(c \mid z)\,\pi_{cy}`, ``(..., t)``."""
        p = Mixture(self.mixture.logits, self.mixture.components)
        return p.log_responsibilities(z).exp() @ torch.softmax(self.label_logits, dim=-1)


class WithLabel(Distribution):
    """p(z, y) at the label y of every row: a density of z that integrates to p(y).

    Parameters
    ----------
    mixture
        p(z), batch shape ``(n,)``.
    log_label
        log p(y | c) of every row under every component, ``(n, c)``.

    Examples
    --------
    >>> p = Mixture(torch.zeros(2), Gaussian(torch.zeros(2, 3), torch.ones(3))).expand((5,))
    >>> at = WithLabel(p, torch.full((5, 2), 0.5).log())
    >>> (at.log_prob(torch.zeros(5, 3)) - p.log_prob(torch.zeros(5, 3))).exp()[0]
    tensor(0.5000)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, mixture: Mixture, log_label: Tensor) -> None:
        self.mixture, self.log_label = mixture, log_label
        super().__init__(mixture.batch_shape, mixture.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z, y) of every row, ``(...)``."""
        return self.mixture.log_prob_with(value, self.log_label)
