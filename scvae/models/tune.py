"""scvae.tune: which network, and which law of counts, says most of cells that it did not see."""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from scvae.arguments import check_choice, check_path, check_seed, check_switch, check_whole, shown
from scvae.choices import COUNTS, DISPERSIONS, LIKELIHOODS, PRIORS, CountKind
from scvae.core.networks import evaluating
from scvae.core.objectives import importance_weighted_bound
from scvae.data.read.several import sources_of
from scvae.data.read.sources import Sources
from scvae.errors import ConfigError, DataError, FileError
from scvae.io import replacing
from scvae.keywords import named
from scvae.modalities.rna import Rna
from scvae.models.budget import MOST_STEPS, VALIDATION, batch_size_of, schedule_of, split
from scvae.models.device import pick_device
from scvae.models.fit import sized
from scvae.models.keep.checkpoint import Checkpoint
from scvae.models.network import Architecture
from scvae.models.plan import HELD_OUT_SIZE, Plan, Trained, train_plan
from scvae.models.prepare import Prepared, prepare
from scvae.models.progress import progress as progress_of

if TYPE_CHECKING:
    from anndata import AnnData

DEFAULTS: dict[str, Any] = {"n_latent": 30, "n_hidden": 128, "n_layers": 1, "likelihood": "nb"}
SPACE: dict[str, tuple[Any, ...]] = {
    "n_latent": (10, 20, 30, 50),
    "n_hidden": (64, 128, 256),
    "n_layers": (1, 2),
    "likelihood": ("nb", "zinb"),
}
FURTHER = {"dispersion": "gene", "prior": "mixture"}  # searched where they are asked for
CHOICES = {"likelihood": LIKELIHOODS, "dispersion": DISPERSIONS, "prior": PRIORS}
SHARES = (0.25, 0.5, 1.0)  # of a candidate's steps, in every round
SAMPLES = 25  # of z, of every held-out cell
LEARNING_RATE = 8e-3


@dataclass(frozen=True)
class Tuning:
    """What a search found.

    Attributes
    ----------
    table
        A row a trial, the last round first, the best of each first: `candidate` (0 has the
        defaults), `round`, `steps`, what the candidate is, `log_likelihood` of the held-out cells
        (nats per cell), `gain` over the defaults with as large a share of their steps, `error` of
        that gain (standard error over the cells), `seconds`.
    best
        Arguments for `scvae.fit`: the defaults, unless a candidate of the last round exceeds them
        by more than twice the error.

    Examples
    --------
    >>> import pandas as pd
    >>> import scvae
    >>> table = pd.DataFrame({"candidate": [0, 1], "gain": [0.0, -0.2]})
    >>> print(scvae.Tuning(table, best={"n_latent": 30}))
     candidate  gain
             0   0.0
             1  -0.2
    scvae.fit(adata, ..., n_latent=30)
    """

    table: pd.DataFrame
    best: dict[str, Any]

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.best.items())
        return f"{self.table.to_string(index=False)}\nscvae.fit(adata, ..., {given})"


@dataclass(frozen=True)
class _Search:
    """What all trials share."""

    prepared: Prepared
    library_size: str
    rows: tuple[Tensor, Tensor]
    seed: int
    device: torch.device
    folder: Path | None
    progress: bool

    def plan(self, candidate: Mapping[str, Any], share: float) -> Plan:
        given = {**FURTHER, **candidate}
        of_rna = Rna(1, likelihood=given["likelihood"], dispersion=given["dispersion"])
        sizes = {name: given[name] for name in ("n_latent", "n_hidden", "n_layers", "prior")}
        asked = sized(Architecture({}, **sizes), of_rna, self.prepared, self.library_size, {})
        train, held_out = self.rows
        size = batch_size_of(None, len(train))
        steps = max(1, round(share * candidate["max_steps"]))
        schedule = schedule_of(steps, len(train), size, LEARNING_RATE, True)
        return Plan(self.prepared, asked, schedule, train, held_out, size, self.seed)

    def trial(self, candidate: Mapping[str, Any], share: float) -> tuple[np.ndarray, float]:
        """Return log p(x) of the held-out cells and the seconds it took, now or before."""
        plan = self.plan(candidate, share)
        place = None if self.folder is None else self.folder / plan.digest[:16]
        if place is not None and (place / "trial.json").exists():
            return _read(place / "trial.json", len(plan.held_out_rows))
        kept, start = None if place is None else Checkpoint(place, plan.digest), time.monotonic()
        with progress_of(plan.schedule.steps, self.progress) as report:
            trained = train_plan(plan, self.device, stream=None, checkpoint=kept, report=report)
        values, seconds = _evidence(plan, trained), time.monotonic() - start
        if place is not None and kept is not None:
            with replacing(place / "trial.json") as draft:
                draft.write_text(json.dumps({"seconds": seconds, "values": values.tolist()}))
            kept.path.unlink(missing_ok=True)
        return values, seconds


@torch.no_grad()
def _evidence(plan: Plan, trained: Trained) -> np.ndarray:
    """Return an importance-sampled log p(x) of every held-out cell, in nats."""
    generator = Generator(trained.dataset.device).manual_seed(plan.seed)
    few = max(1, HELD_OUT_SIZE // SAMPLES)
    with evaluating(trained.vae):
        values = [
            importance_weighted_bound(trained.vae.terms(cells, SAMPLES, generator)).double().cpu()
            for cells in trained.dataset.minibatches(plan.held_out_rows, few)
        ]
    return np.asarray(torch.cat(values))


def _read(path: Path, n: int) -> tuple[np.ndarray, float]:
    """Return what a trial of before wrote down."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        values, seconds = np.asarray(held["values"], dtype=np.float64), float(held["seconds"])
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise FileError(f"{path} is damaged: {error}. Remove it, to do its trial again.") from error
    if values.shape != (n,) or not np.isfinite(values).all():
        raise FileError(f"{path} is damaged: it lacks cells. Remove it, to do its trial again.")
    return values, seconds


@named("scvae.tune")
def tune(
    adata: AnnData,
    *,
    batch: str | None = None,
    covariates: str | Sequence[str] | None = None,
    layer: str | None = None,
    genes: str | Sequence[str] | None = None,
    library_size: str = "observed",
    counts: CountKind = "whole",
    space: Mapping[str, Sequence[Any]] | None = None,
    n_candidates: int = 8,
    max_steps: int | None = None,
    validation: float | str = VALIDATION,
    seed: int = 0,
    device: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Tuning:
    r"""Search arguments of `scvae.fit` by the likelihood of held-out cells; never by labels.

    Successive halving (Jamieson and Talwalkar, "Non-stochastic best arm identification and
    hyperparameter optimization", AISTATS 2016): all candidates get a quarter of their steps, the
    better half of them half, and the better half of these all. Every trial starts anew from the
    same seed and learning rate schedule. The defaults of `scvae.fit` are a candidate, and stay to
    the end. Candidates are compared by

    .. math:: \log \frac1k \sum_k \frac{p(x, z_k)}{q(z_k \mid x)}, \qquad k = 25

    of the same cells, which chose the weights of every trial, too: what is reported is a little
    above that of cells that nobody saw. A likelihood says how well counts are predicted; whether
    clusters are what you look for is another question.

    Parameters
    ----------
    adata
        Cells x genes with raw counts; as for `scvae.fit`. Nothing is written to it.
    batch, covariates, layer, genes, library_size, counts, validation, seed, device
        As for `scvae.fit`.
    space
        Values to try of ``n_latent``, ``n_hidden``, ``n_layers``, ``likelihood``, ``max_steps``,
        ``dispersion`` or ``prior``; what is not named has its default alone. None searches the
        first five.
    n_candidates
        Candidates, drawn from all combinations by `seed`, the defaults among them.
    max_steps
        Steps of the defaults; None chooses by the number of cells, as `scvae.fit`. Twice as many
        are tried, too.
    folder
        Where trials are written down: the same call later does only what is lacking.
    progress
        Show a bar for every trial.

    Returns
    -------
    Tuning
        ``table``, a row a trial, and ``best``, arguments for `scvae.fit`.

    Raises
    ------
    DataError
        If the data are not what they must be.
    ConfigError
        If an argument has a value that is not allowed.
    FileError
        If `folder` holds a damaged trial.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.simulate(n_cells=200, n_genes=50)
    >>> found = scvae.tune(adata, n_candidates=2, max_steps=20, progress=False)
    >>> len(found.table), sorted(found.best)
    (6, ['likelihood', 'max_steps', 'n_hidden', 'n_latent', 'n_layers'])
    """
    n_candidates, seed = check_whole("n_candidates", n_candidates, 8, least=2), check_seed(seed)
    if max_steps is not None:
        check_whole("max_steps", max_steps, MOST_STEPS)
    checked = None if space is None else _checked(space)
    place = None if folder is None else Path(check_path("folder", folder, "tuning"))
    progress = check_switch("progress", progress, False)
    chosen = pick_device(device)
    counts = check_choice("counts", counts, COUNTS)
    sources = _of_genes(adata)
    prepared = prepare(sources, batch, covariates, layer, genes, library_size, counts)
    train, held_out = (rows.to(chosen) for rows in split(sources, validation, seed))
    prepared = prepared.told(held_out.cpu().numpy(), validation)
    search = _Search(prepared, library_size, (train, held_out), seed, chosen, place, progress)
    usual = schedule_of(max_steps, len(train), batch_size_of(None, len(train)), 1.0, True).steps
    if checked is None:
        checked = SPACE | {"max_steps": (usual, 2 * usual)}
    return _halve(search, _candidates(checked, usual, n_candidates, seed))


def _of_genes(adata: AnnData) -> Sources:
    """Return where the genes are; what is searched are sizes of models of genes alone."""
    sources = sources_of(adata, split=False)
    kinds = [part.kind for part in sources.parts]
    if kinds != ["rna"]:
        raise DataError(
            f"adata holds {', '.join(kinds)}, but models of genes alone are searched: "
            "scvae.tune(mdata['rna'])"
        )
    return sources


def _checked(space: Any) -> dict[str, tuple[Any, ...]]:
    """Return the values to try, each one that `scvae.fit` takes."""
    known = [*SPACE, "max_steps", *FURTHER]
    if not isinstance(space, Mapping) or not space:
        raise ConfigError(
            f"space={shown(space)}, but it must be a dict: space={{'n_latent': [10]}}"
        )
    for name, values in space.items():
        if name not in known:
            raise ConfigError(f"space has {name!r}, but what is searched is of {', '.join(known)}.")
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ConfigError(
                f"space[{name!r}]={shown(values)}, but it must be a list: [{shown(values)}]"
            )
    return {
        name: tuple(
            check_choice(name, value, CHOICES[name])
            if name in CHOICES
            else check_whole(name, value, DEFAULTS.get(name, MOST_STEPS))
            for value in values
        )
        for name, values in space.items()
    }


def _candidates(
    space: Mapping[str, Sequence[Any]], usual: int, n: int, seed: int
) -> list[dict[str, Any]]:
    """Return the defaults and `n` - 1 other combinations, drawn without repetition."""
    first = DEFAULTS | {"max_steps": usual} | {k: v for k, v in FURTHER.items() if k in space}
    every = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    others = [whole for values in every if (whole := first | values) != first]
    order = np.random.default_rng(seed).permutation(len(others))[: n - 1]
    return [first, *(others[i] for i in sorted(order))]


def _halve(search: _Search, candidates: list[dict[str, Any]]) -> Tuning:
    """Do the rounds; the defaults, candidate 0, are in each."""
    rows, kept = [], list(range(len(candidates)))
    for round_, share in enumerate(SHARES):
        told = {i: search.trial(candidates[i], share) for i in kept}
        for i in kept:
            gains = told[i][0] - told[0][0]
            error = gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
            rows.append(
                {
                    **{"candidate": i, "round": round_},
                    "steps": search.plan(candidates[i], share).schedule.steps,
                    **{k: v for k, v in candidates[i].items() if k != "max_steps"},
                    **{"log_likelihood": told[i][0].mean(), "gain": gains.mean()},
                    **{"error": error, "seconds": told[i][1]},
                }
            )
        ranked = sorted(kept, key=lambda i: -told[i][0].mean())
        kept = sorted({0, *ranked[: max(2, len(kept) // 2)]})
    table = pd.DataFrame(rows).sort_values(["round", "log_likelihood"], ascending=False)
    table = table.reset_index(drop=True)
    return Tuning(table, candidates[_winner(table)])


def _winner(table: pd.DataFrame) -> int:
    """Return the best candidate of the last round, if the defaults are clearly below it."""
    first = table.iloc[0]
    return int(first["candidate"]) if first["gain"] > 2 * first["error"] else 0
