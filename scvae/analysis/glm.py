r"""Negative binomial regression of few samples and many genes, tested by quasi-likelihood.

.. math::
    E\,y_{gi} = \mu_{gi} = \exp(x_i^T \beta_g + o_i), \qquad
    \mathrm{Var}\,y_{gi} = \sigma_g^2 (\mu_{gi} + \phi \mu_{gi}^2)

:math:`\phi` is common to all genes; :math:`\sigma_g^2` is the gene's own, drawn towards what genes
of its abundance have. What the test divides by then has as many degrees of freedom as both know
together, and stays honest with few replicates (Lund, Nettleton, McCarthy and Smyth, "Detecting
differential expression in RNA-sequence data using quasi-likelihood with shrunken dispersion
estimates", Statistical Applications in Genetics and Molecular Biology 2012).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

RIDGE = 1e-8  # of the coefficients: what no sample tells of stays where it is
MOST_STEPS, LARGEST_STEP, TOLERANCE = 50, 3.0, 1e-5
LARGEST_LOG = 30.0  # of a mean
FITTED_ZERO = 1e-3  # counts: a mean below is one that the design has set to zero
SMALLEST_SHARE = 1e-4  # of the median variance, of which logarithms are taken
FEWEST_TO_VOUCH = 19  # permutations, of which none finds a gene that is found at 5 %
ALONE, BEYOND = 0.5, 0.01  # of one sample: share of the squares; chance of these by the prior


@dataclass(frozen=True)
class Fit:
    """A regression of g genes on n samples.

    Attributes
    ----------
    coefficients
        Natural logarithms, ``(g, p)``.
    means
        Fitted counts, ``(g, n)``.
    deviance
        Of the negative binomial of this `dispersion`, ``(g,)``.
    dispersion
        :math:`\\phi`.
    """

    coefficients: np.ndarray
    means: np.ndarray
    deviance: np.ndarray
    dispersion: float


@dataclass(frozen=True)
class Tested:
    """One coefficient of every gene, all ``(g,)``.

    Attributes
    ----------
    coefficient, error
        Natural logarithm of the fold change, and its standard error.
    df
        Degrees of freedom of the error: samples less coefficients, and those of the prior.
    p
        Of the quasi-likelihood F test.
    """

    coefficient: np.ndarray
    error: np.ndarray
    df: np.ndarray
    p: np.ndarray


def size_factors(counts: np.ndarray) -> np.ndarray:
    """Return the relative depth of samples ``(n, g)``, of geometric mean 1, ``(n,)``.

    The median over genes of the ratio to their geometric mean (Anders and Huber, "Differential
    expression analysis for sequence count data", Genome Biology 2010), of genes counted in every
    sample; where these are fewer than 20, the total.

    Examples
    --------
    >>> import numpy as np
    >>> from scvae.analysis.glm import size_factors
    >>> counts = np.arange(1, 31) * np.array([[1], [4]])
    >>> size_factors(counts).round(3).tolist()
    [0.5, 2.0]
    """
    everywhere = (counts > 0).all(axis=0)
    if everywhere.sum() < 20:
        log_size = np.log(np.maximum(counts.sum(axis=1), 1.0))
    else:
        logs = np.log(counts[:, everywhere])
        log_size = np.median(logs - logs.mean(axis=0), axis=1)
    size: np.ndarray = np.exp(log_size - log_size.mean())
    return size


def deviance(counts: np.ndarray, means: np.ndarray, dispersion: float) -> np.ndarray:
    """Return the deviance of negative binomial counts ``(g, n)``, in nats, ``(g,)``."""
    spread = (1 + dispersion * counts) / (1 + dispersion * means)
    own = special.xlogy(counts, counts / means)
    if dispersion < 1e-8:  # Poisson
        return 2 * (own - (counts - means)).sum(axis=1)
    return 2 * (own - (counts + 1 / dispersion) * np.log(spread)).sum(axis=1)


def fit_means(counts: np.ndarray, design: np.ndarray, size: np.ndarray, dispersion: float) -> Fit:
    """Return the maximum likelihood fit at a known dispersion, by Fisher scoring.

    Parameters
    ----------
    counts
        ``(g, n)``.
    design
        ``(n, p)``, of full rank.
    size
        Relative depth of the samples, ``(n,)``.
    dispersion
        Of the negative binomial.
    """
    offset = np.log(size)
    start = np.log((counts + 0.5) / size)
    beta = np.linalg.lstsq(design, start.T, rcond=None)[0].T
    means = _means(beta, design, offset)
    loss = deviance(counts, means, dispersion)
    moving = np.arange(len(counts))  # genes whose fit still changes
    for _ in range(MOST_STEPS):
        y, mu, before = counts[moving], means[moving], loss[moving]
        score = ((y - mu) / (1 + dispersion * mu)) @ design
        information = _information(mu, design, dispersion)
        step = np.linalg.solve(information, score[..., None])[..., 0]
        step *= np.minimum(1, LARGEST_STEP / np.abs(step).max(axis=1).clip(1e-12))[:, None]
        for _ in range(6):  # a step that makes it worse is halved
            mu = _means(beta[moving] + step, design, offset)
            after = deviance(y, mu, dispersion)
            worse = after > before + TOLERANCE * (1 + before)
            if not worse.any():
                break
            step[worse] /= 2
        beta[moving] += step
        means[moving], loss[moving] = mu, after
        moving = moving[np.abs(before - after) > TOLERANCE * (1 + after)]
        if not len(moving):
            break
    return Fit(beta, means, loss, dispersion)


def _means(beta: np.ndarray, design: np.ndarray, offset: np.ndarray) -> np.ndarray:
    means: np.ndarray = np.exp(np.clip(beta @ design.T + offset, -LARGEST_LOG, LARGEST_LOG))
    return means


def _information(means: np.ndarray, design: np.ndarray, dispersion: float) -> np.ndarray:
    """Return the Fisher information of the coefficients, ``(g, p, p)``."""
    n, p = design.shape
    products = (design[:, :, None] * design[:, None, :]).reshape(n, p * p)
    weights = means / (1 + dispersion * means)
    found = (weights @ products).reshape(-1, p, p)
    return found + RIDGE * np.eye(p)


def degrees_of_freedom(means: np.ndarray, design: np.ndarray) -> np.ndarray:
    """Return how many residuals are free, ``(g,)``: samples that are fitted as zero are none.

    A replicate without a count in either arm has a coefficient of its own that says so: neither
    the samples nor the coefficient tell anything of the spread."""
    seen = means > FITTED_ZERO
    out = np.full(len(means), float(len(design) - _rank(design)))
    some = ~seen.all(axis=1)
    patterns, which = np.unique(seen[some], axis=0, return_inverse=True)
    free = [int(pattern.sum()) - _rank(design[pattern]) for pattern in patterns]
    out[some] = np.array(free, dtype=float)[which.reshape(-1)]
    return out


def _rank(design: np.ndarray) -> int:
    return int(np.linalg.matrix_rank(design)) if len(design) else 0


def common_dispersion(counts: np.ndarray, means: np.ndarray, df: np.ndarray) -> float:
    r"""Return :math:`\phi` at which the squares of residuals are those expected, on average.

    Of the half of the genes that is counted most, where it is told from Poisson noise."""
    chosen = (df > 0) & (means.mean(axis=1) >= np.median(means.mean(axis=1)))
    if not chosen.any():
        return 0.0
    squares, mu, free = (counts - means)[chosen] ** 2, means[chosen], df[chosen]

    def excess(log_phi: float) -> float:
        ratio = (squares / (mu + np.exp(log_phi) * mu**2)).sum(axis=1) / free
        return float(np.minimum(ratio, 10).mean() - 1)

    low, high = np.log(1e-6), np.log(10.0)
    if excess(low) <= 0:
        return 0.0
    return float(np.exp(optimize.brentq(excess, low, high))) if excess(high) < 0 else 10.0


def fit(counts: np.ndarray, design: np.ndarray, size: np.ndarray) -> Fit:
    """Return the fit at the common dispersion, which is estimated from its residuals in turn."""
    dispersion = 0.05
    for _ in range(2):
        found = fit_means(counts, design, size, dispersion)
        df = degrees_of_freedom(found.means, design)
        dispersion = common_dispersion(counts, found.means, df)
    return fit_means(counts, design, size, dispersion)


def shrink(variance: np.ndarray, df: np.ndarray, abundance: np.ndarray) -> tuple[np.ndarray, float]:
    r"""Return variances drawn towards those of genes of like abundance, and the prior's freedom.

    .. math:: s^2 \sim s_0^2 F_{d, d_0}, \qquad \tilde s^2 = (d_0 s_0^2 + d s^2) / (d_0 + d)

    with :math:`d_0` and :math:`s_0^2` from mean and variance of the logarithms (Smyth, "Linear
    models and empirical Bayes methods for assessing differential expression", 2004), of which the
    mean is a cubic of the logarithm of abundance.

    Parameters
    ----------
    variance
        Estimates, ``(g,)``.
    df
        Their degrees of freedom; those without any take the prior's.
    abundance
        Logarithm of the mean count.
    """
    told = df > 0
    if told.sum() < 10:  # too few genes to learn a prior from
        return np.where(told, variance, 1.0), 0.0
    s2, d = variance[told], df[told]
    s2 = np.maximum(s2, SMALLEST_SHARE * max(float(np.median(s2)), 1e-12))
    logs = np.log(s2) - special.digamma(d / 2) + np.log(d / 2)
    power = 3 if told.sum() >= 50 else 0
    x = (abundance - abundance[told].mean()) / max(float(abundance[told].std()), 1e-9)
    basis = np.vander(np.clip(x, -3, 3), power + 1)
    trend = basis @ np.linalg.lstsq(basis[told], logs, rcond=None)[0]
    left = float(((logs - trend[told]) ** 2).sum() / (told.sum() - power - 1))
    extra = left - float(special.polygamma(1, d / 2).mean())
    if extra <= 1e-6:  # no more variable than estimates are: all genes share the trend
        return np.exp(trend), float("inf")
    prior = 2 * _inverse_trigamma(extra)
    s0 = np.exp(trend + special.digamma(prior / 2) - np.log(prior / 2))
    return (prior * s0 + np.where(told, df * variance, 0.0)) / (prior + np.maximum(df, 0)), prior


def _inverse_trigamma(y: float) -> float:
    """Return x of which the trigamma function is y > 0."""
    low, high = -20.0, 20.0
    return float(np.exp(optimize.brentq(lambda t: special.polygamma(1, np.exp(t)) - y, low, high)))


def f_test(full: Fit, counts: np.ndarray, design: np.ndarray, column: int, null: Fit) -> Tested:
    r"""Return the quasi-likelihood F test of one coefficient, gene by gene.

    A gene that one sample makes vary beyond what the prior allows keeps its own variance.

    .. math:: F = (D_0 - D_1) / \tilde s^2, \qquad s^2 = \frac{1}{d} \sum_i
              \frac{(y_i - \mu_i)^2}{\mu_i + \phi \mu_i^2}

    Parameters
    ----------
    full
        Fit with the coefficient.
    column
        Its place in `design`.
    null
        Fit without it, at the same dispersion.
    """
    means, phi = full.means, full.dispersion
    df = degrees_of_freedom(means, design)
    squares = (counts - means) ** 2 / (means + phi * means**2)
    own, abundance = squares.sum(axis=1) / np.maximum(df, 1), np.log(counts.mean(axis=1) + 0.1)
    drawn, prior = shrink(own, df, abundance)
    apart = _of_one_sample(squares, own, drawn, df, prior)
    variance = np.where(apart, own, drawn)
    # No more than all genes together know.
    total = np.minimum(df + np.where(apart, 0.0, prior), df.sum())
    statistic = np.maximum(null.deviance - full.deviance, 0) / variance
    p = np.where(total > 0, stats.f.sf(statistic, 1, np.maximum(total, 1e-3)), np.nan)
    spread = np.linalg.inv(_information(means, design, phi))[:, column, column]
    error = np.sqrt(spread * variance)
    return Tested(full.coefficients[:, column], error, total, p)


def _of_one_sample(
    squares: np.ndarray, own: np.ndarray, drawn: np.ndarray, df: np.ndarray, prior: float
) -> np.ndarray:
    """Return whether one sample makes a gene vary more than the prior allows, ``(g,)``.

    Drawn to the prior, the variance of such a gene would turn the one sample into an effect."""
    if prior == 0:
        return np.zeros(len(own), dtype=bool)
    if np.isinf(prior):
        usual = drawn
    else:
        usual = np.where(df > 0, drawn + (drawn - own) * df / prior, drawn)
    tail = stats.f.sf(own / usual, np.maximum(df, 1), min(prior, 1e6))
    alone = squares.max(axis=1) > ALONE * squares.sum(axis=1)
    return alone & (df > 0) & (tail < BEYOND)


def adjust_by_permutations(p: np.ndarray, permuted: list[np.ndarray]) -> np.ndarray:
    r"""Return false discovery rates as seen where nothing differs, no less than those of `adjust`.

    .. math:: \mathrm{fdr}(p) = \min_{p' \ge p} \frac{(N_0(p') + 1) / (B + 1)}{N(p')}

    N genes have p or less, and :math:`N_0` in B permutations together. The ones, of the true
    arrangement, which is among those that there could have been, are left out where B < 19, as
    then no single gene could ever be found. Genes go together, and some vary more than any law
    expects: what a permutation finds counts both.

    Parameters
    ----------
    p
        ``(g,)``, NaN where a gene was not tested.
    permuted
        Of each permutation, as `p`.

    Examples
    --------
    >>> import numpy as np
    >>> from scvae.analysis.glm import adjust_by_permutations
    >>> p, permuted = np.array([1e-4, 0.8]), [np.array([1e-5, 0.5]), np.array([0.3, 0.4])]
    >>> adjust_by_permutations(p, permuted).round(4).tolist()
    [0.5, 1.0]
    """
    out = adjust(p)
    if not permuted:
        return out
    there = np.flatnonzero(~np.isnan(p))
    order = there[np.argsort(p[there], kind="stable")]
    pool = np.sort(np.concatenate(permuted))
    one = len(permuted) >= FEWEST_TO_VOUCH
    by_chance = (np.searchsorted(pool, p[order], side="right") + one) / (len(permuted) + one)
    rate = by_chance / np.searchsorted(p[order], p[order], side="right")
    out[order] = np.maximum(out[order], np.minimum(np.minimum.accumulate(rate[::-1])[::-1], 1))
    return out


def adjust(p: np.ndarray) -> np.ndarray:
    """Return false discovery rates (Benjamini and Hochberg, 1995); NaN stays, and is not counted.

    Examples
    --------
    >>> import numpy as np
    >>> from scvae.analysis.glm import adjust
    >>> adjust(np.array([0.01, 0.02, np.nan, 0.9])).round(3).tolist()
    [0.03, 0.03, nan, 0.9]
    """
    out = np.full(len(p), np.nan)
    there = ~np.isnan(p)
    if there.any():
        out[there] = stats.false_discovery_control(p[there])
    return out
