r"""Linear-Gaussian latent variable models, solved: the exact reference for everything variational.

.. math:: z \sim N(0, I), \qquad x \mid z \sim N(Wz + \mu, \Psi), \qquad
          x \sim N(\mu, WW^\top + \Psi)

Probabilistic PCA has :math:`\Psi = \sigma^2 I`, factor analysis a diagonal :math:`\Psi`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scvae.core.distributions import FullGaussian, Gaussian

RIDGE = 0.1  # of every variance


@dataclass(frozen=True)
class LinearGaussian:
    """A linear-Gaussian model with known parameters, whose every question has an exact answer.

    Attributes
    ----------
    loading
        W, ``(g, d)``.
    loc
        Mean of x, ``(g,)``.
    noise
        Variance of every entry of x given z, the diagonal of Psi, ``(g,)``.

    Examples
    --------
    >>> model = LinearGaussian(torch.ones(3, 1), torch.zeros(3), torch.ones(3))
    >>> x = torch.zeros(5, 3)
    >>> model.marginal.covariance.shape, model.log_prob(x)[0]
    (torch.Size([3, 3]), tensor(-3.4500))
    >>> q = model.posterior(x)
    >>> q.variance[0], model.likelihood(q.mean).mean.shape
    (tensor([0.2500]), torch.Size([5, 3]))
    """

    loading: Tensor
    loc: Tensor
    noise: Tensor

    @property
    def marginal(self) -> FullGaussian:
        """p(x), a Gaussian over ``(g,)``."""
        covariance = self.loading @ self.loading.T + torch.diag(self.noise)
        return FullGaussian.of_covariance(self.loc, covariance)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the exact log p(x) of every row, ``(n,)``, in nats."""
        return self.marginal.log_prob(x)

    def posterior(self, x: Tensor) -> FullGaussian:
        r"""Return the exact p(z | x): precision :math:`I + W^\top\Psi^{-1}W`, ``(n,)``."""
        scaled = self.loading / self.noise[:, None]
        precision = torch.eye(self.loading.shape[1]).to(scaled) + self.loading.T @ scaled
        covariance = torch.linalg.inv(precision)
        return FullGaussian.of_covariance((x - self.loc) @ scaled @ covariance, covariance)

    def likelihood(self, z: Tensor) -> Gaussian:
        """Return p(x | z), batch shape ``(..., n)``."""
        return Gaussian(z @ self.loading.T + self.loc, self.noise.sqrt())


def ppca(x: Tensor, n_latent: int) -> LinearGaussian:
    r"""Return the maximum-likelihood probabilistic PCA of `x` ``(n, g)``, in closed form.

    With eigenvalues :math:`\lambda_1 \ge \lambda_2 \ge \dots` of the covariance and its first d
    eigenvectors U,

    .. math:: \sigma^2 = \frac{1}{g-d}\sum_{i>d} \lambda_i, \qquad
              W = U\,(\Lambda - \sigma^2 I)^{1/2}

    References
    ----------
    Tipping and Bishop. Probabilistic principal component analysis. JRSS B, 1999.

    Examples
    --------
    >>> x = torch.randn(200, 5) + 3 * torch.randn(200, 1)
    >>> model = ppca(x, n_latent=1)
    >>> model.loading.shape, bool((model.noise == model.noise[0]).all())
    (torch.Size([5, 1]), True)
    """
    _check_latent(n_latent, x.shape[1] - 1)
    values, vectors = _spectrum(_covariance(x))
    rest = values[n_latent:].mean()
    if not rest > _rounding(values) * values[0]:
        raise ValueError(
            f"n_latent={n_latent} dimensions hold all the variance of these {len(x)} rows, which "
            "leaves no noise: the density has no bound. Give fewer dimensions, or more rows"
        )
    loading = vectors[:, :n_latent] * (values[:n_latent] - rest).clamp(min=0).sqrt()
    return LinearGaussian(loading, x.mean(0), rest.expand(x.shape[1]))


def factor_analysis(
    x: Tensor, n_latent: int, *, tolerance: float = 1e-8, most_rounds: int = 10_000
) -> LinearGaussian:
    r"""Return the maximum-likelihood factor analysis of `x` ``(n, g)``.

    Given :math:`\Psi`, the best W has a closed form: with eigenvalues :math:`\lambda` and
    eigenvectors U of :math:`\Psi^{-1/2} S \Psi^{-1/2}`,
    :math:`W = \Psi^{1/2} U (\Lambda - I)_+^{1/2}`; given W, the noise is
    :math:`\Psi = \mathrm{diag}(S - WW^\top)`. The two alternate until the log-likelihood of a row
    rises by less than `tolerance` (D. Barber, "Bayesian reasoning and machine learning", 2012,
    section 21.1).

    Raises ValueError where an entry of x is constant, or where rows enough show that entries
    determine each other: noise of 0 would give a density without bound.

    Examples
    --------
    >>> x = torch.randn(200, 5) + 3 * torch.randn(200, 1)
    >>> bool(factor_analysis(x, 1).log_prob(x).sum() >= ppca(x, 1).log_prob(x).sum())
    True
    """
    _check_latent(n_latent, x.shape[1])
    covariance = _covariance(x)
    total = covariance.diagonal()
    if constant := (x == x[0]).all(0).nonzero().flatten().tolist():
        raise ValueError(f"Entries {constant} of x are constant: leave them out")
    noise = total * _left_by_others(covariance, len(x))
    loading, before = _loading(covariance, noise, n_latent)
    for _ in range(most_rounds):
        # A variance below this share of the total would be a Heywood case: density without bound.
        noise = torch.maximum(total - loading.square().sum(1), 1e-6 * total)
        loading, score = _loading(covariance, noise, n_latent)
        if score - before < tolerance:
            break
        before = score
    return LinearGaussian(loading, x.mean(0), noise)


def _left_by_others(covariance: Tensor, n: int) -> Tensor:
    """Return about which share of the variance of every entry the others do not explain."""
    total = covariance.diagonal()
    correlation = covariance / total.sqrt() / total.sqrt()[:, None]
    values, vectors = torch.linalg.eigh(correlation)
    if n > len(total) and values[0] < _rounding(values):
        together = (vectors[:, 0].abs() > 1e-3).nonzero().flatten().tolist()
        raise ValueError(f"Entries {together} of x determine each other: leave one of them out")
    # No more rows than entries make a singular matrix: a little is added for the start alone.
    added = RIDGE if n <= len(total) else 0.0
    return (vectors.square() / (values + added)).sum(1).reciprocal()


def _loading(covariance: Tensor, noise: Tensor, n_latent: int) -> tuple[Tensor, float]:
    """Return the best W given the noise, and the log-likelihood of a row, up to a constant."""
    root = noise.sqrt()
    values, vectors = _spectrum(covariance / root[:, None] / root)
    first = values[:n_latent].clamp(min=1)
    score = -0.5 * (noise.log().sum() + (first.log() - first).sum() + values.sum())
    return root[:, None] * vectors[:, :n_latent] * (first - 1).sqrt(), score.item()


def _rounding(values: Tensor) -> float:
    """Return the share of the largest eigenvalue below which others are 0 to rounding."""
    return 10 * len(values) * torch.finfo(values.dtype).eps


def _check_latent(n_latent: int, most: int) -> None:
    if not 0 <= n_latent <= most:
        raise ValueError(f"n_latent={n_latent}, but it must be between 0 and {most} for these data")


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / len(x)


def _spectrum(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, largest first, and eigenvectors in columns."""
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0), vectors.flip(1)
