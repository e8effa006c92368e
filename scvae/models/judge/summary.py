"""A printable report of a fitted model: data, network, objective, and how the fit went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from scvae.arguments import encodable
from scvae.data.checkup.report import html_row
from scvae.data.read.source import RAW, where_named
from scvae.modalities.chromatin import KIND as CHROMATIN
from scvae.modalities.chromatin import WEIGHT_SCALE
from scvae.modalities.rna import Rna
from scvae.models.judge.convergence import Convergence, convergence
from scvae.models.judge.held_out import LEAST_VARIANCE
from scvae.models.judge.words import FEATURES, laws
from scvae.models.keep.origin import Origin, PartOrigin
from scvae.models.keep.record import Record
from scvae.models.network import LABEL_NATS, LABEL_TIMES, PRIOR_COMPONENTS, Architecture
from scvae.train.history import History

Rows = list[tuple[str, str]]

FEW_ACTIVE = 0.25  # share of the latent dimensions: fewer are called a collapse
MOST_NAMES = 6
OF_TWO = "in distances between two cells"


@dataclass(frozen=True, repr=False)
class Summary:
    """A report that prints itself, and shows itself as a table in a notebook.

    Attributes
    ----------
    sections
        Rows of name and value, by the title of their section.
    convergence
        How training ended.
    warnings
        What to be wary of, a sentence each.
    """

    sections: Mapping[str, Rows]
    convergence: Convergence
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        width = 2 + max(len(name) for rows in self.sections.values() for name, _ in rows)
        lines = []
        for title, rows in self.sections.items():
            lines += [title, *(f"  {name:<{width}}{value}" for name, value in rows)]
        return encodable("\n".join([*lines, *(f"Warning: {text}" for text in self.warnings)]))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        body = "".join(
            f'<tr><th colspan="2" style="text-align:left">{escape(title)}</th></tr>'
            + "".join(map(html_row, rows))
            for title, rows in self.sections.items()
        )
        notes = "".join(f"<p><b>Warning:</b> {escape(text)}</p>" for text in self.warnings)
        return f"<table>{body}</table>{notes}"


def summarise(a: Architecture, origin: Origin, record: Record, n_parameters: int) -> Summary:
    """Return the report of a model.

    Parameters
    ----------
    a
        Shapes and formulas of the network.
    origin
        Genes, covariates and counts that it was fitted on.
    record
        What the fit wrote down; whatever is missing is left out.
    n_parameters
        Number of weights.
    """
    ended = convergence(record)
    sections = {
        "Data": _data(a, origin, record),
        "Model": _model(a, origin, n_parameters),
        "Objective": _objective(a, record),
        "Embedding": _embedding(a, origin, record),
        "Training": _training(ended, record),
    }
    sections = {title: rows for title, rows in sections.items() if rows}
    return Summary(sections, ended, tuple(_warnings(a, ended, record)))


# -- sections ------------------------------------------------------------------------------------


def _data(a: Architecture, origin: Origin, record: Record) -> Rows:
    covariates = origin.covariates
    known = {"cells trained on": record.n_train, "cells held out": record.n_held_out}
    rows = [(name, f"{n:,}") for name, n in known.items() if n is not None]
    rows += [(FEATURES[kind], f"{part.n_features:,}") for kind, part in a.parts.items()]
    if covariates.batch is not None:
        names = _listed(covariates.batches)
        rows.append(("batches", f"{a.n_batches} of {covariates.batch!r}: {names}"))
    if covariates.others:
        kinds = dict.fromkeys(covariates.numbers, "number")
        taken = [f"{name!r} ({kinds.get(name, 'category')})" for name in covariates.others]
        rows.append(("covariates", ", ".join(taken)))
    if record.labels is not None and record.n_labelled is not None:
        of = f"{a.n_labels} of {record.labels!r}, of {record.n_labelled:,} cells"
        rows.append(("labels", of))
    place = ", ".join(_place(part) for part in origin.parts.values())
    if origin.counts == "rounded":
        place += ", rounded to whole numbers"
    return [*rows, ("counts", f"{place}, {record.counts}" if record.counts else place)]


def _place(part: PartOrigin) -> str:
    """Return where the counts of a kind were."""
    place = where_named(part.layer) + (" or adata.raw.X" if part.layer == RAW else "")
    return place if part.place is None else f"{part.place} ({place.removeprefix('adata.')})"


def _model(a: Architecture, origin: Origin, n_parameters: int) -> Rows:
    layers = "1 layer" if a.n_layers == 1 else f"{a.n_layers} layers"
    linear = ", linear" if a.rna is not None and a.rna.linear else ""
    return [
        ("latent dimensions", f"{a.n_latent}, prior {_prior(a)}"),
        ("encoder, decoder", f"{layers} of {a.n_hidden}{linear}; {n_parameters:,} weights in all"),
        *_laws(a),
        ("library size", origin.library_size),
    ]


def _prior(a: Architecture) -> str:
    if a.prior == "normal":
        return "N(0, I)"
    return f"a mixture of {PRIOR_COMPONENTS + a.n_labels} Gaussians"


def _laws(a: Architecture) -> Rows:
    """Return the law of the counts of every kind, and how kinds are fused."""
    rows, found = [], laws(a)
    for kind, part in a.parts.items():
        dispersion = ""
        if isinstance(part, Rna) and part.likelihood != "poisson":
            dispersion = f", a dispersion per {part.dispersion}"
        title = "likelihood" if len(a.parts) == 1 else f"likelihood of {kind}"
        rows.append((title, f"{found[kind]}{dispersion}"))
    return [*rows, ("fusion", f"{a.fusion} of experts")] if len(a.parts) > 1 else rows


def _objective(a: Architecture, record: Record) -> Rows:
    rows = [("bound", "E_q[log p(x|z)] - KL(q(z|x) || p(z)), nats per cell")]
    if a.n_labels:
        heard = f"the label {LABEL_TIMES:g} times, at most {LABEL_NATS:g} nats"
        rows.append(("of labelled cells", f"p(z, label) for p(z), {heard}"))
    if record.alone is not None:
        rows.append(("bounds of single kinds", f"of each, added with weight {record.alone:g}"))
    if record.weights is not None:
        told = ", ".join(f"{kind} {weight:g}" for kind, weight in record.weights.items())
        rows.append(("weights of log-likelihoods", f"{told} while training"))
    if CHROMATIN in a.parts:
        rows.append(("weights of regions", f"N(0, {WEIGHT_SCALE:g}^2) beforehand"))
    if record.final_beta is not None:
        rows.append(("final KL weight", f"{record.final_beta:g}"))
    if record.elbo_held_out is not None:
        rows.append(("held-out ELBO", f"{record.elbo_held_out:,.1f}"))
    held_out = record.held_out
    if held_out is not None:
        rows.append(("  reconstruction", f"{held_out.reconstruction:,.1f}"))
        rows.append(("  KL", f"{held_out.kl:,.1f}"))
    if held_out is not None and held_out.active is not None:
        text = f"{held_out.active} of {a.n_latent} (variance of the posterior mean over"
        rows.append(("active dimensions", f"{text} {LEAST_VARIANCE:g} of the prior's)"))
    return rows


def _embedding(a: Architecture, origin: Origin, record: Record) -> Rows:
    if record.align is None:
        return []  # a model of an older file
    of = "log expression, exact" if a.rna is not None and a.rna.linear else "expression"
    rows = [("coordinates", f"{a.n_latent} principal components of decoded {of}")]
    if not record.align or (a.n_batches < 2 and not any(record.moved or [])):
        return rows
    if a.n_batches < 2:
        (share,) = record.moved or [0.0]
        between = f"{record.align:g} of what lies between cells of different kinds of measurement"
        return [*rows, ("alignment", between), ("cells moved by", f"{share:.2g}, {OF_TWO}")]
    rows.append(("alignment", f"{record.align:g} of what the network left of the batches"))
    named = zip(origin.covariates.batches, record.moved or [], strict=False)
    far = sorted(named, key=lambda pair: -pair[1])
    moved = ", ".join(f"{name!r} {share:.2g}" for name, share in far[:MOST_NAMES])
    more = f" and {len(far) - MOST_NAMES} more" if len(far) > MOST_NAMES else ""
    return [*rows, ("cells moved by", f"{moved}{more}, {OF_TWO}")]


def _training(ended: Convergence, record: Record) -> Rows:
    history = record.history
    rows = [("verdict", ended.text)]
    if history is not None and history.seconds:  # a file holds no times
        speed = f"{history.seconds:,.1f} s, {history.cells_per_second:,.0f} cells/s"
        rows.append(("time", speed))
    known = {"device": record.device, "batch size": record.batch_size, "seed": record.seed}
    return rows + [(name, str(value)) for name, value in known.items() if value is not None]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(map(repr, names[:MOST_NAMES])) + (f" and {more} more" if more > 0 else "")


# -- warnings ------------------------------------------------------------------------------------


def _warnings(a: Architecture, ended: Convergence, record: Record) -> list[str]:
    history = record.history or History()
    active = None if record.held_out is None else record.held_out.active
    rolled_back = _rolled_back(history.rollbacks)
    found = (ended.advice, rolled_back, _light_kl(history), _collapse(a, active))
    return [text for text in (*found, *(record.warnings or [])) if text]


def _collapse(a: Architecture, active: int | None) -> str:
    if active is None or active >= max(FEW_ACTIVE * a.n_latent, min(2, a.n_latent)):
        return ""
    return (
        f"Posterior collapse: {active} of {a.n_latent} latent dimensions are active; the others "
        "say nothing of the cells. More steps may wake them: scvae.fit(adata, max_steps=...). If "
        "the embedding tells apart what it should, the data need no more."
    )


def _light_kl(history: History) -> str:
    """Return a warning if the kept weights are of a step before the KL weight had risen."""
    if not history.step:
        return ""
    weight = history.beta[history.step.index(history.best_step)]
    if weight >= 1:
        return ""
    return (
        f"The weights kept are of step {history.best_step:,}, when the KL weight was only "
        f"{weight:.2g}: they were not trained on the ELBO yet."
    )


def _rolled_back(steps: Sequence[int]) -> str:
    if not steps:
        return ""
    times = "once" if len(steps) == 1 else f"{len(steps)} times"
    return (
        f"The bound was not finite {times} (after step {', '.join(f'{s:,}' for s in steps)}), and "
        "training went back to the best weights. A smaller rate may do better: "
        "scvae.fit(adata, learning_rate=1e-3)"
    )
