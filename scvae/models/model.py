"""A fitted model of RNA counts, and what analysts ask of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Generator, Tensor

from scvae.arguments import (
    check_names,
    check_path,
    check_positive,
    check_seed,
    check_switch,
    check_whole,
    shown,
)
from scvae.core.objectives import elbo, log_evidence
from scvae.core.vae import VAE
from scvae.data.hold.cells import Cells, Dataset
from scvae.data.read.choice import look
from scvae.data.read.genes import check_unique, match_genes
from scvae.data.read.library import library_sizes
from scvae.errors import ConfigError, DataError
from scvae.models.embedding import Embedding
from scvae.models.judge.evidence import MeanLogLikelihood, mean_over_cells
from scvae.models.judge.predictive import predictive_statistics
from scvae.models.judge.summary import Summary, summarise
from scvae.models.keep.files import Parts, read_model, write_model
from scvae.models.keep.origin import Origin
from scvae.models.keep.record import Record
from scvae.models.rna import Architecture, Decoder, Prior

if TYPE_CHECKING:
    from anndata import AnnData

CHUNK_VALUES = 2**20  # dense values of one inference minibatch: 4 MiB of float32, cached
DRAWS = 100  # of z at once, of every cell


class Model:
    """A fitted variational autoencoder of RNA counts; made by `scvae.fit` or `scvae.load`.

    Every method takes any AnnData with the model's genes, in any order, and returns rows in the
    order of its cells. Nothing is written to the AnnData.

    Attributes
    ----------
    vae
        The network.
    embedding
        Map from its latent space to the embedding.
    architecture
        Shapes and formulas of the network.
    origin
        Genes, covariates and counts that the model was fitted on.
    record
        How the fit went: seed, versions, history, final KL weight; also in ``uns["scvae"]``.
    """

    def __init__(
        self,
        vae: VAE,
        embedding: Embedding,
        architecture: Architecture,
        origin: Origin,
        record: Record,
    ) -> None:
        self.vae, self.embedding, self.architecture = vae, embedding, architecture
        self.origin, self.record = origin, record

    def __repr__(self) -> str:
        a, covariates = self.architecture, self.origin.covariates
        given = [f"batch={covariates.batch!r} ({a.n_batches})"] if covariates.batch else []
        return (
            f"scvae.Model({a.n_genes} genes -> {a.n_latent} latents, {a.likelihood}, "
            + ", ".join([*given, f"library_size={self.origin.library_size!r}"])
            + f", {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.vae.parameters()).device

    @property
    def batches(self) -> list[str]:
        """Names of the batches that the model corrects for."""
        return self.origin.covariates.batches

    # -- inference ---------------------------------------------------------------------------

    def embed(
        self, adata: AnnData, *, layer: str | None = None, return_std: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        r"""Return the embedding of every cell, float32 ``(n, d)``.

        The principal components of expression decoded from the mean of q(z | x), as if every cell
        had the same covariates (see `scvae.models.coordinates`), less what the network left of the
        cell's batch (see `scvae.models.alignment`). Distances are those of decoded expression.

        Parameters
        ----------
        adata
            Cells with raw counts of the model's genes.
        layer
            Where the counts are; None looks where they were in the fit, then in X.
        return_std
            Also return the posterior standard deviation, ``(n, d)``, in the same units, by the
            delta method. It takes more than a hundred times as long.

        Raises
        ------
        DataError
            If genes are missing, values are not counts, or a batch is unknown.

        Examples
        --------
        >>> import scvae
        >>> adata = scvae.simulate(n_cells=200, n_genes=50)
        >>> model = scvae.fit(adata, max_steps=20, progress=False)
        >>> model.embed(adata).shape == (200, model.architecture.n_latent)
        True
        """
        return_std = check_switch("return_std", return_std, True)
        dataset = self._dataset(adata, layer, "model.embed(adata")
        mean = self.embed_dataset(dataset)
        return (mean, self._deviations(dataset)) if return_std else mean

    def embed_dataset(self, dataset: Dataset) -> np.ndarray:
        """Return the embedding of cells that were already read, float32 ``(n, d)``."""
        d, decoder = self.architecture.n_latent, self._decoder()

        def mean(cells: Cells) -> Tensor:
            return self.embedding.mean(decoder, self.vae.encode(cells).loc[:, :d], cells.batch)

        return self._per_cell(dataset, mean)

    def _deviations(self, dataset: Dataset) -> np.ndarray:
        """Return the posterior standard deviation of the embedding of all cells, ``(n, d)``."""
        d, decoder = self.architecture.n_latent, self._decoder()

        def deviation(cells: Cells) -> Tensor:
            q = self.vae.encode(cells)
            return self.embedding.deviation(decoder, q.loc[:, :d], q.scale[:, :d], cells.batch)

        return self._per_cell(dataset, deviation)

    def elbo(
        self, adata: AnnData, *, layer: str | None = None, samples: int = 10, seed: int = 0
    ) -> np.ndarray:
        """Return the evidence lower bound of every cell, in nats, ``(n,)``.

        Parameters
        ----------
        samples
            Posterior samples over which the reconstruction term is averaged.
        seed
            Of those samples.
        """
        samples, generator = self._draws(samples, seed)

        def bound(cells: Cells) -> Tensor:
            return elbo(self.vae.terms(cells, samples, generator))[:, None]

        dataset = self._dataset(adata, layer, "model.elbo(adata")
        return self._per_cell(dataset, bound, samples)[:, 0]

    def log_likelihood(
        self,
        adata: AnnData,
        *,
        layer: str | None = None,
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
        samples, generator = self._draws(samples, seed)
        return_error = check_switch("return_error", return_error, True)
        if return_error and samples < 2:
            raise ConfigError(f"samples={samples}, but an error needs at least two: samples=100")
        dataset = self._dataset(adata, layer, "model.log_likelihood(adata")
        value, error = self._evidence(dataset, samples, generator)
        return (value, error) if return_error else value

    def mean_log_likelihood(
        self, adata: AnnData, *, layer: str | None = None, samples: int = 100, seed: int = 0
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
        """
        samples, generator = self._draws(samples, seed, usual=100)
        if samples < 2:
            raise ConfigError(f"samples={samples}, but an error needs at least two: samples=100")
        dataset = self._dataset(adata, layer, "model.mean_log_likelihood(adata")
        first, second = (self._evidence(dataset, samples // 2, generator)[0] for _ in range(2))
        return mean_over_cells(first, second)

    def _evidence(
        self, dataset: Dataset, samples: int, generator: Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return estimates of log p(x) of all cells, and their standard errors, ``(n,)``."""

        def estimate(cells: Cells) -> Tensor:
            found = log_evidence(self.vae, cells, samples, generator, chunk=DRAWS)
            return torch.stack([found.value, found.standard_error], dim=-1)

        both = self._per_cell(dataset, estimate, min(samples, DRAWS))
        return both[:, 0].copy(), both[:, 1].copy()

    def _draws(self, samples: int, seed: int, usual: int = 1) -> tuple[int, Generator]:
        """Return the number of draws and what they are drawn from."""
        samples = check_whole("samples", samples, usual, least=None)
        if samples < 1:
            raise ConfigError(f"samples={samples}, but at least one is needed: samples=1")
        return samples, Generator(self.device).manual_seed(check_seed(seed))

    def normalized(
        self,
        adata: AnnData,
        *,
        layer: str | None = None,
        batch: str = "average",
        genes: Sequence[str] | None = None,
        library_size: float = 1e4,
        out: Any = None,
    ) -> Any:
        r"""Return denoised expression: :math:`\rho_{ng}` times a library size, cells x genes.

        Parameters
        ----------
        adata
            Cells with raw counts of the model's genes.
        batch
            As if every cell came from this batch; "average" takes the mean over all batches
            (batch-corrected expression), "own" leaves every cell in its batch.
        genes
            Names of the genes to return; None returns all that the model knows.
        library_size
            Total that the counts of a cell are scaled to.
        out
            Array ``(n, g)`` to fill instead, a few thousand rows at a time, for more cells than
            memory holds: a numpy.memmap, or a dataset of h5py or zarr.

        Returns
        -------
        pandas.DataFrame
            float32, rows as in `adata`, columns as in `genes`; or `out`, if it was given.

        Raises
        ------
        ConfigError
            If `out` has another shape.
        """
        check_unique(adata)
        columns = self._gene_positions(genes)
        total = check_positive("library_size", library_size, "1e4")
        targets, decoder = self._batch_targets(batch), self._decoder()

        def expression(cells: Cells) -> Tensor:
            z = self.vae.encode(cells).loc
            return decoder.expression(z, cells.s, targets)[:, columns] * total

        shape = (adata.n_obs, len(columns))
        if out is not None:
            _check_out(out, shape)
        dataset = self._dataset(adata, layer, "model.normalized(adata")
        values = self._per_cell(dataset, expression, out=out)
        if out is not None:
            return out
        names = [self.origin.genes[i] for i in columns.tolist()]
        return pd.DataFrame(values, index=adata.obs_names.copy(), columns=names)

    def sample(self, n: int, *, batch: str | None = None, seed: int = 0) -> AnnData:
        """Draw `n` new cells from the model: z from the prior, then library, then counts.

        Parameters
        ----------
        n
            Number of cells.
        batch
            Batch of all cells; None draws batches as often as they were seen in training.
            Categorical covariates take their first category, continuous ones their mean.
        seed
            Of the draws.

        Returns
        -------
        AnnData
            Counts as CSR in X, the batch in obs, in ``obsm["X_scvae"]`` the embedding of z, as it
            would be of a cell of that batch.
        """
        from anndata import AnnData

        n = check_whole("n", n, 100, least=None)
        if n < 1:
            raise ConfigError(f"n={n}, but at least one cell must be drawn: model.sample(100)")
        generator = Generator(self.device).manual_seed(check_seed(seed))
        codes = self._draw_batches(n, batch, generator)
        rows, latents = [], []
        for part in codes.split(self._chunk()):
            z, counts = self._draw(part, generator)
            latents.append(z.cpu().numpy())
            rows.append(sparse.csr_matrix(counts.cpu().numpy()))
        obs = pd.DataFrame(index=[f"sample_{i}" for i in range(n)])
        if self.origin.covariates.batch is not None:
            names = np.array(self.batches)[codes.cpu().numpy()]
            obs[self.origin.covariates.batch] = pd.Categorical(names, categories=self.batches)
        var = pd.DataFrame(index=self.origin.genes)
        return AnnData(
            sparse.vstack(rows, format="csr"), obs, var, obsm={"X_scvae": np.vstack(latents)}
        )

    def _draw_batches(self, n: int, batch: str | None, generator: Generator) -> Tensor:
        if batch is not None:
            return torch.full((n,), self._batch_code(batch), device=self.device)
        shares = torch.tensor(self.origin.batch_shares, device=self.device)
        return torch.multinomial(shares, n, replacement=True, generator=generator)

    @torch.no_grad()
    def _draw(self, codes: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        n, design = len(codes), self.origin.covariates.encode(codes.cpu().numpy())
        s = torch.from_numpy(design).to(self.device)
        prior = self.vae.prior
        assert isinstance(prior, Prior)
        loc, scale = prior.library_loc[codes, None], prior.library_scale[codes, None]
        noise = torch.randn(n, 1, generator=generator, device=self.device)
        x = torch.zeros(n, self.architecture.n_genes, device=self.device)
        cells = Cells(x, s, batch=codes, log_library=loc + scale * noise)
        z = prior(cells).sample(generator=generator)
        counts = self._decoder()(z, cells).sample(generator=generator)
        z = z[:, : self.architecture.n_latent]
        return self.embedding.mean(self._decoder(), z, codes), counts

    # -- how good it is ----------------------------------------------------------------------

    def summary(self) -> Summary:
        """Return a report of the model that prints itself: data, network, objective, and the fit.

        With warnings, if training had not converged, if few latent dimensions are active, or if
        the weights are of a time at which the KL weight was still rising.
        """
        n_parameters = sum(parameter.numel() for parameter in self.vae.parameters())
        return summarise(self.architecture, self.origin, self.record, n_parameters)

    def predictive_check(
        self,
        adata: AnnData,
        *,
        layer: str | None = None,
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
        return self.predictive_table(
            adata, layer, samples, max_cells, seed, call="model.predictive_check(adata"
        )

    def predictive_table(
        self,
        adata: AnnData,
        layer: str | None,
        samples: int,
        max_cells: int,
        seed: int,
        *,
        call: str,
    ) -> pd.DataFrame:
        """Do as `predictive_check`, in the name of the user's `call` of what calls this."""
        check_unique(adata)
        samples, generator = self._draws(samples, seed)
        max_cells = check_whole("max_cells", max_cells, 5_000, least=None)
        if min(adata.n_obs, max_cells) < 1:
            raise DataError(f"{adata.n_obs} cells, max_cells={max_cells}: nothing to compare.")
        if adata.n_obs > max_cells:
            chosen = np.random.default_rng(seed).choice(adata.n_obs, max_cells, replace=False)
            adata = adata[np.sort(chosen)]
        dataset = self._dataset(adata, layer, call, depth=1)
        minibatches = dataset.minibatches(
            torch.arange(len(dataset), device=self.device), self._chunk(samples)
        )
        return predictive_statistics(
            self.vae, minibatches, self.origin.genes, generator, samples=samples
        )

    # -- files -------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one safetensors file, atomically; `scvae.load` reads it.

        Raises
        ------
        FileError
            If `path` cannot be written; what was there before is left as it was.
        """
        path = check_path("path", path, "model.scvae")
        parts = Parts(self.vae, self.embedding, self.architecture, self.origin, self.record)
        write_model(path, parts)

    # -- inside ------------------------------------------------------------------------------

    def _dataset(self, adata: AnnData, layer: str | None, call: str, depth: int = 0) -> Dataset:
        """Return the cells of `adata`, for the user's `call`, `depth` frames above the caller's."""
        columns = match_genes(adata, self.origin.genes)
        home = self.origin.layer if self.origin.layer in adata.layers else None
        layer = home if layer is None else layer
        choice = look(adata, layer, columns, summarise=False, call=call, home=home)
        seen = choice.require(stacklevel=4 + depth)
        library = library_sizes(adata, seen.totals, self.origin.library_size)
        encoded = self.origin.covariates.read(adata.obs)
        return Dataset.build(seen.counts, encoded.design, encoded.codes, library, self.device)

    def _chunk(self, samples: int = 1) -> int:
        return max(1, CHUNK_VALUES // (self.architecture.n_genes * samples))

    @torch.no_grad()
    def _per_cell(
        self,
        dataset: Dataset,
        function: Callable[[Cells], Tensor],
        samples: int = 1,
        out: Any = None,
    ) -> Any:
        """Apply `function` to all cells, a bounded number at a time, in their order.

        The rows go to `out`, or else to a new float32 array."""
        rows, start = torch.arange(len(dataset), device=self.device), 0
        for cells in dataset.minibatches(rows, self._chunk(samples)):
            values = function(cells).cpu().numpy()
            if out is None:
                out = np.empty((len(dataset), values.shape[1]), dtype=np.float32)
            out[start : start + len(values)] = values
            start += len(values)
        return out

    def _decoder(self) -> Decoder:
        decoder = self.vae.likelihood
        assert isinstance(decoder, Decoder)
        return decoder

    def _batch_code(self, batch: str) -> int:
        if str(batch) not in self.batches:
            raise ConfigError(f"batch={shown(batch)} is not one of the model's: {self.batches}.")
        return self.batches.index(str(batch))

    def _batch_targets(self, batch: str) -> list[int]:
        """Return the batches to average over; none stands for every cell's own."""
        if str(batch) in self.batches:
            return [self._batch_code(batch)]
        if str(batch) == "own":
            return []
        if str(batch) == "average":
            return list(range(len(self.batches)))
        raise ConfigError(
            f"batch={shown(batch)} is not one of the model's: {self.batches}; or give "
            "batch='average' (mean over all), batch='own' (as measured)."
        )

    def _gene_positions(self, genes: Sequence[str] | None) -> Tensor:
        if genes is None:
            return torch.arange(self.architecture.n_genes, device=self.device)
        names = check_names("genes", genes, self.origin.genes[:2])
        known = {name: i for i, name in enumerate(self.origin.genes)}
        missing = [name for name in names if name not in known]
        if missing:
            raise ConfigError(
                f"genes has {len(missing)} names that the model was not fitted on "
                f"(first: {missing[:5]}). model.origin.genes lists those it knows."
            )
        return torch.tensor([known[name] for name in names], dtype=torch.long, device=self.device)


def _check_out(out: Any, shape: tuple[int, int]) -> None:
    """Raise unless `out` is an array of floating-point numbers of this shape."""
    found = getattr(out, "shape", None)
    if not isinstance(found, tuple):
        raise ConfigError(
            f"out={shown(out)}, but it must be an array of shape {shape}: "
            f"out=numpy.empty({shape}, numpy.float32)"
        )
    if tuple(found) != shape:
        raise ConfigError(
            f"out has shape {tuple(found)}, but the result has {shape}: cells x genes."
        )
    flags = getattr(out, "flags", None)
    is_writeable = getattr(flags, "writeable", True)
    if not isinstance(dtype := getattr(out, "dtype", None), np.dtype) or dtype.kind != "f":
        raise ConfigError(
            f"out is a {type(out).__name__} of {dtype}, but the result needs floating-point "
            f"numbers: out=numpy.empty({shape}, numpy.float32)"
        )
    if not is_writeable:
        raise ConfigError(f"out may not be written to: out=numpy.empty({shape}, numpy.float32)")


def load(path: str | os.PathLike[str], *, device: str | None = None) -> Model:
    """Read a model that `Model.save` wrote.

    Parameters
    ----------
    path
        A file written by `Model.save`. It is data only: nothing in it is executed.
    device
        "cuda", "cpu", or None for the GPU where there is one.

    Raises
    ------
    FileError
        If the file is missing, damaged, or not a model of scvae.
    """
    chosen = pick_device(device)
    parts = read_model(check_path("path", path, "model.scvae"))
    return Model(
        parts.vae.to(chosen),
        parts.embedding.to(chosen),
        parts.architecture,
        parts.origin,
        parts.record,
    )


def pick_device(device: str | None) -> torch.device:
    """Return the device asked for; None takes CUDA where there is one.

    Raises
    ------
    ConfigError
        If the device is unknown or not there.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if not isinstance(device, str | torch.device):
            raise TypeError
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"device={shown(device)} is not a device of torch; give 'cpu' or 'cuda'."
        ) from error
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={device!r} is not supported; give 'cpu' or 'cuda'.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={device!r}, but this torch ({torch.__version__}) finds "
            f"{torch.cuda.device_count()} CUDA devices. "
            "Give device='cpu', or install a CUDA build of torch."
        )
    return chosen
