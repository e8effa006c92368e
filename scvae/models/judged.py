"""How well a model tells of cells: bounds, evidence, and what it draws beside what was seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from torch import Tensor

from scvae.arguments import check_switch
from scvae.core.objectives import elbo
from scvae.data.hold.cells import Cells
from scvae.errors import ConfigError
from scvae.models.fitted import Fitted, Layer
from scvae.models.judge.evidence import (
    MeanLogLikelihood,
    conditional_evidence,
    evidence,
    mean_over_cells,
)
from scvae.models.judge.predictive import predictive_table
from scvae.models.query import draws

if TYPE_CHECKING:
    from anndata import AnnData


class Judged(Fitted):
    """A trained network that says how good it is."""

    def elbo(
        self, adata: AnnData, *, layer: Layer = None, samples: int = 10, seed: int = 0
    ) -> np.ndarray:
        """Return the evidence lower bound of every cell, in nats, ``(n,)``.

        Parameters
        ----------
        samples
            Posterior samples over which the reconstruction term is averaged.
        seed
            Of those samples.

        Examples
        --------
        >>> import scvae
        >>> adata = scvae.simulate(n_cells=200, n_genes=50)
        >>> model = scvae.fit(adata, max_steps=20, progress=False)
        >>> model.elbo(adata, samples=2).shape
        (200,)
        """
        samples, generator = draws(samples, seed, self.device)

        def bound(cells: Cells) -> Tensor:
            return elbo(self.vae.terms(cells, samples, generator))[:, None]

        dataset = self.read_for(adata, layer, "model.elbo(adata", partial=True)
        return self.over(dataset, bound, samples=samples)[:, 0]

    def log_likelihood(
        self,
        adata: AnnData,
        *,
        layer: Layer = None,
        modality: str | None = None,
        given: str | None = None,
        samples: int = 100,
        seed: int = 0,
        return_error: bool = False,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        r"""Return an importance-sampled estimate of log p(x) of every cell, in nats, ``(n,)``.

        .. math:: \hat\ell = \log \frac1k \sum_k w_k, \quad
                  w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \quad
                  \mathrm{error} = \frac{1}{\sqrt k}\,\mathrm{sd}\!\left(w_k / \bar w\right)

        A lower bound in expectation that rises to log p(x) with `samples` (Burda, Grosse and
        Salakhutdinov, "Importance weighted autoencoders", ICLR 2016). Compare models by estimates
        of equally many.

        Parameters
        ----------
        adata
            Cells with raw counts of the model's genes.
        layer
            Where the counts are; None looks where they were in the fit, then in X.
        modality, given
            Of a model of several kinds, the one whose counts alone are asked about, and another
            that is known: log p(x_modality | x_given). None takes all kinds together. NaN where a
            cell was not measured in them.
        samples
            Draws k of z from the posterior of every cell.
        seed
            Of those draws.
        return_error
            Also return the Monte Carlo standard error of every estimate, ``(n,)``, in nats, by the
            delta method. It knows the weights that were drawn: rare large ones are missing from it,
            so that with tens of latent dimensions other seeds differ by half as much again. It is
            at most 1, where a single draw carries all the weight.

        Raises
        ------
        ConfigError
            If there are no samples, or too few (one) to tell an error.

        Examples
        --------
        >>> import scvae
        >>> adata = scvae.simulate(n_cells=200, n_genes=50)
        >>> model = scvae.fit(adata, max_steps=20, progress=False)
        >>> value, error = model.log_likelihood(adata, return_error=True)
        >>> value.shape, error.shape
        ((200,), (200,))
        """
        samples, generator = draws(samples, seed, self.device)
        return_error = check_switch("return_error", return_error, True)
        if return_error and samples < 2:
            raise ConfigError(f"samples={samples}, but an error needs at least two: samples=100")
        dataset = self.read_for(adata, layer, "model.log_likelihood(adata", partial=True)
        value, error = conditional_evidence(
            *(self, dataset, samples, generator), modality=modality, given=given
        )
        return (value, error) if return_error else value

    def mean_log_likelihood(
        self, adata: AnnData, *, layer: Layer = None, samples: int = 100, seed: int = 0
    ) -> MeanLogLikelihood:
        """Return the mean of log p(x) over cells, in nats per cell, with its standard errors.

        Every cell counts the same. For the parameters and what is estimated see `log_likelihood`.
        The Monte Carlo error comes from two halves of the samples, cell by cell, which unlike the
        delta method see it when a large weight is in one of them alone.

        Returns
        -------
        MeanLogLikelihood
            ``value``; ``monte_carlo_error``, what other draws would change; ``sampling_error``,
            what other cells of the same kind would change, which holds the first; ``n_cells``.

        Raises
        ------
        ConfigError
            If there are fewer than two samples.
        DataError
            If there are no cells.

        Examples
        --------
        >>> import scvae
        >>> adata = scvae.simulate(n_cells=200, n_genes=50)
        >>> model = scvae.fit(adata, max_steps=20, progress=False)
        >>> model.mean_log_likelihood(adata, samples=20).n_cells
        200
        """
        samples, generator = draws(samples, seed, self.device, usual=100)
        if samples < 2:
            raise ConfigError(f"samples={samples}, but an error needs at least two: samples=100")
        dataset = self.read_for(adata, layer, "model.mean_log_likelihood(adata", partial=True)
        half = samples // 2
        first, second = (evidence(self, dataset, half, generator)[0] for _ in range(2))
        return mean_over_cells(first, second)

    def predictive_check(
        self,
        adata: AnnData,
        *,
        layer: Layer = None,
        modality: str | None = None,
        samples: int = 1,
        max_cells: int = 5_000,
        seed: int = 0,
    ) -> pd.DataFrame:
        r"""Compare counts with those that the model draws for the same cells, gene by gene.

        .. math:: z_n \sim q(z \mid x_n, s_n), \qquad \tilde x_n \sim p(x \mid z_n, l_n, s_n)

        A posterior predictive check (Gelman, Meng and Stern, "Posterior predictive assessment of
        model fitness via realized discrepancies", Statistica Sinica 1996). The drawn cells take
        latent vector, library size and covariates from the measured ones, so that it tests the
        law of the counts more than the latent space. `scvae.plot.fit_check` draws it.

        Parameters
        ----------
        adata
            Cells with raw counts of the model's genes; best such as were not trained on.
        layer
            Where the counts are; None looks where they were in the fit, then in X.
        modality
            Kind of measurement to check; None takes the first.
        samples
            Draws of every cell; statistics are averaged over them, not taken of all together.
        max_cells
            Of more cells, take so many at random.
        seed
            Of the cells taken and of the draws.

        Returns
        -------
        pandas.DataFrame
            A row a gene: ``observed_mean`` and ``predicted_mean`` (counts a cell),
            ``observed_variance`` and ``predicted_variance`` (over cells), ``observed_zeros`` and
            ``predicted_zeros`` (share of the cells without a count).

        Raises
        ------
        DataError
            If there are no cells.

        Examples
        --------
        >>> import scvae
        >>> adata = scvae.simulate(n_cells=200, n_genes=50)
        >>> model = scvae.fit(adata, max_steps=20, progress=False)
        >>> model.predictive_check(adata).shape
        (50, 6)
        """
        call = "model.predictive_check(adata"
        return self.predictive_table(
            adata, layer, samples, max_cells, seed, modality=modality, call=call
        )

    def predictive_table(
        self,
        adata: AnnData,
        layer: Layer,
        samples: int,
        max_cells: int,
        seed: int,
        *,
        modality: str | None = None,
        call: str,
    ) -> pd.DataFrame:
        """Do as `predictive_check`, in the name of the user's `call` of what calls this.

        Examples
        --------
        >>> import scvae
        >>> adata = scvae.simulate(n_cells=200, n_genes=50)
        >>> model = scvae.fit(adata, max_steps=20, progress=False)
        >>> model.predictive_table(adata, None, 1, 100, 0, call="my_report(model, adata").shape
        (50, 6)
        """
        given = (layer, modality, samples, max_cells, seed)
        return predictive_table(self, adata, *given, call=call)
