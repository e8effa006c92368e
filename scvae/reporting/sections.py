"""The sections of a report: what was measured, in words, tables and pictures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from scvae.analysis.judging import NEIGHBOURS
from scvae.analysis.null_batch import NullBatch
from scvae.choices import RESOLUTION
from scvae.models.judge.evidence import MeanLogLikelihood
from scvae.reporting import page, pictures
from scvae.reporting.measure import HARMONY, OWN, PCA, Measured, agreements

if TYPE_CHECKING:
    from scvae.models.model import Model

STATES = {"converged": "good", "unknown": ""}
NAMES = {OWN: "scvae", PCA: "PCA", HARMONY: "Harmony on PCA"}
SCORES = (
    *("biology", "k-means NMI", "k-means ARI", "Leiden NMI", "Leiden ARI", "silhouette"),
    "mixing",
)
SUMS = ("biology", "mixing")


def body(model: Model, found: Measured, provenance: list[tuple[str, str]]) -> str:
    """Return everything that the page shows; `provenance` is the table at its end."""
    parts = [
        _head(model, found),
        _at_a_glance(model, found),
        _data(model, found),
        _training(model),
        _likelihood(model, found),
        _predictions(found),
        _embeddings(found),
        _scores(found),
        _null(found),
        page.section("Provenance", page.facts_table(provenance)),
    ]
    return "\n".join(part for part in parts if part)


# -- at a glance ---------------------------------------------------------------------------------


def _head(model: Model, found: Measured) -> str:
    parts = [f"{found.n_cells:,} cells x {model.architecture.n_genes:,} genes"]
    if found.batches is not None:
        parts.append(f"{found.batches.nunique():,} batches of {found.batches.name!r}")
    if found.labels is not None:
        parts.append(f"{found.labels.nunique():,} labels of {found.labels.name!r}")
    text = ", ".join(parts) + "."
    if found.n_drawn < found.n_cells:
        text += f" Maps and scores are of {found.n_drawn:,} cells drawn at random."
    return f"<h1>scvae report</h1>\n{page.paragraph(text, 'soft')}"


def _at_a_glance(model: Model, found: Measured) -> str:
    levels = [finding.level for finding in found.findings]
    errors, warnings = levels.count("error"), levels.count("warning")
    state = "bad" if errors else "look" if warnings else "good"
    value, kind = found.likelihood.value, _kind(found)
    items = [
        ("Data", f"{_count(errors, 'error')}, {_count(warnings, 'warning')}", "check-up", state),
        ("Training", *_ended(model)),
        (f"log p(x), {kind} cells", _value(value), f"nats per cell, {value.n_cells:,} cells", ""),
    ]
    for name in SUMS:
        if any(name in scores for scores in found.scores.values()):
            items.append((name.capitalize(), *_versus(found, name), ""))
    null = found.null
    if isinstance(null, NullBatch):
        note = f"of neighbours kept; {null.by_chance:.0%} by another seed alone"
        items.append(("Null batch", f"{null.kept:.0%}", note, ""))
    else:
        items.append(("Null batch", "not run", "see below", ""))
    return page.cards(items)


def _ended(model: Model) -> tuple[str, str, str]:
    """Return how training ended, after how many steps, and the state of the box."""
    verdict, history = model.summary().convergence.verdict, model.record.history
    steps = f"{history.step[-1]:,} steps" if history and history.step else "not recorded"
    if verdict == "stopped early":
        verdict, steps = "converged", f"stopped early, {steps}"
    return verdict, steps, STATES.get(verdict, "look")


def _versus(found: Measured, name: str) -> tuple[str, str]:
    """Return a score of the model, and those of the others as a note."""
    own, *others = ((method, scores[name]) for method, scores in found.scores.items())
    note = ", ".join(f"{method} {_share(value)}" for method, value in others)
    return _share(own[1]), note


def _kind(found: Measured) -> str:
    return "held-out" if found.likelihood.is_held_out else "these"


# -- data, training ------------------------------------------------------------------------------


def _data(model: Model, found: Measured) -> str:
    order = ("error", "warning", "info")
    findings = sorted(found.findings, key=lambda finding: order.index(finding.level))
    rows = [(str(f.level), str(f.what), f.text) for f in findings]
    sections = model.summary().sections
    return page.section(
        "Data and model",
        page.paragraph("What scvae.check says of these cells, errors first.", "soft"),
        page.findings_table(rows),
        page.pairs(
            *(
                page.group(title, page.facts_table(held))
                for title, held in sections.items()
                if title != "Training"
            )
        ),
    )


def _training(model: Model) -> str:
    summary, history = model.summary(), model.record.history
    curve = ""
    if history is not None and history.step:
        about = "Evidence lower bound of training and held-out cells against the training step"
        curve = page.row(page.figure(pictures.training(model), about))
    return page.section(
        "Training",
        page.facts_table(summary.sections["Training"]),
        *(page.paragraph(text, "look") for text in summary.warnings),
        curve,
    )


# -- likelihood and predictions ------------------------------------------------------------------


def _likelihood(model: Model, found: Measured) -> str:
    held = found.likelihood
    rows = [(f"log p(x), {_kind(found)} cells", _likelihood_row(held.value))]
    if held.of_training is not None:
        rows.append(("log p(x), training cells", _likelihood_row(held.of_training)))
    bound = model.record.elbo_held_out
    if bound is not None:
        rows.append(("ELBO, as recorded by the fit", (_signed(bound, 2), "", "", "")))
    head = ("nats per cell", "mean", "Monte Carlo error", "sampling error", "cells")
    return page.section(
        "Held-out likelihood",
        page.paragraph(_whose(found)),
        page.numbers_table(head, rows),
        page.paragraph(
            "log p(x) is estimated by importance sampling, 100 draws a cell: a bound from below, "
            "closer than the ELBO. The Monte Carlo error is what other draws would change, the "
            "sampling error what other cells of the same kind would. Higher is better; only values "
            "of the same cells and genes compare.",
            "soft",
        ),
    )


def _whose(found: Measured) -> str:
    held = found.likelihood
    if not held.is_held_out:
        return (
            "Which cells the fit held out cannot be told of these data: they are other cells, or "
            "in another order. So these values are of cells that the fit may have seen."
        )
    if held.of_training is None:
        return ""
    gap = held.of_training.value - held.value.value
    error = math.hypot(held.of_training.sampling_error, held.value.sampling_error)
    return (
        f"Training cells are likelier than those held out by {gap:,.1f} nats per cell, with a "
        f"standard error of {error:,.1f}. The held-out cells are those of the fit: reconstruction "
        "and KL are what it recorded."
    )


def _likelihood_row(value: MeanLogLikelihood) -> tuple[str, str, str, str]:
    return (
        _signed(value.value, 2),
        f"{value.monte_carlo_error:,.2f}",
        "–" if math.isnan(value.sampling_error) else f"{value.sampling_error:,.2f}",
        f"{value.n_cells:,}",
    )


def _predictions(found: Measured) -> str:
    told = agreements(found.predictive)
    drawn = pictures.predictions(found.predictive)
    figures = (
        page.figure(
            png,
            f"Predicted against observed {label} of every gene",
            label.capitalize(),
            f"correlation {told[label][0]:.3f}, median ratio {told[label][1]:.3f}",
        )
        for label, png in drawn.items()
    )
    kind = "held-out cells" if found.likelihood.is_held_out else "cells of these data"
    return page.section(
        "Predictive check",
        page.paragraph(
            f"Counts of {found.n_predicted:,} {kind} beside counts that the model draws for the "
            "same cells, a point a gene. A model of the right law has its points about the line; "
            "the ratio is predicted over observed. Genes without a count on a side are on the edge."
        ),
        page.row(*figures),
    )


# -- embeddings ----------------------------------------------------------------------------------


def _embeddings(found: Measured) -> str:
    groups = []
    for what, values, clusters in (
        ("batch", found.batches, False),
        ("label", found.labels, False),
        ("Leiden cluster of X_scvae", found.clusters, True),
    ):
        if values is None:
            continue
        figures = (
            page.figure(
                pictures.cells(points, values, "on" if clusters else "none"),
                f"UMAP of {NAMES[name]} by {what}",
                NAMES[name],
            )
            for name, points in found.layouts.items()
        )
        name = "" if clusters else f" ({values.name!r})"
        colours = () if clusters else (page.legend(pictures.colours(values)),)
        groups.append(page.group(f"By {what}{name}", page.row(*figures), *colours))
    return page.section(
        "Embeddings",
        page.paragraph(
            "UMAP of the embedding beside those of principal components of scaled log counts, and "
            "of what Harmony makes of them. Distances between groups, and their sizes, mean little "
            f"in a UMAP. Clusters are Leiden's of X_scvae at a resolution of {RESOLUTION:g}, "
            f"{found.clusters.nunique()} of them.",
            "soft",
        ),
        *(page.paragraph(note) for note in found.notes if note.startswith(HARMONY)),
        *groups,
    )


def _scores(found: Measured) -> str:
    notes = [page.paragraph(note) for note in found.notes if not note.startswith(HARMONY)]
    if not found.scores:
        return page.section("Biology and mixing", *notes)
    head = ("", *(NAMES[name] for name in found.scores))
    held = [name for name in SCORES if any(name in scores for scores in found.scores.values())]
    rows = [(name, [_share(scores[name]) for scores in found.scores.values()]) for name in held]
    return page.section(
        "Biology and mixing",
        page.numbers_table(head, rows, SUMS),
        *notes,
        page.paragraph(
            "Biology is the mean of the five scores below it: NMI and ARI of k-means and Leiden "
            "clusters against the labels, each a mean over five seeds, and the silhouette. Mixing "
            "is CiLISI, batches within types: 0 where they lie apart, 1 where they are as mixed as "
            "the type's own composition allows. Higher is better, but mixing bought with biology "
            "is none. Differences of about .02 are noise, and seeds of the fit may differ by more.",
            "soft",
        ),
    )


def _null(found: Measured) -> str:
    null, title = found.null, "Null-batch test"
    if not isinstance(null, NullBatch):
        return page.section(title, page.paragraph(null))
    rows = [
        ("scvae, corrected for the split", (f"{null.kept:.1%}",)),
        ("scvae, no split, another seed", (f"{null.by_chance:.1%}",)),
    ]
    if null.kept_by_harmony is not None:
        rows.append(("Harmony, of its own PCA", (f"{null.kept_by_harmony:.1%}",)))
    return page.section(
        title,
        page.paragraph(
            f"{null.n_cells:,} cells of one batch were split at random into two that do not "
            f"differ, and corrected for it. What should change is nothing: these shares of every "
            f"cell's {NEIGHBOURS} nearest neighbours were kept. For scvae, what another seed keeps "
            "without any correction is all that can be asked for."
        ),
        page.numbers_table(("", "neighbours kept"), rows),
    )


# -- numbers as words ----------------------------------------------------------------------------


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _value(found: MeanLogLikelihood) -> str:
    error = found.sampling_error
    return _signed(found.value, 1) + ("" if math.isnan(error) else f" ± {error:,.1f}")


def _signed(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace("-", "−")


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
