"""What `scvae.fit` would refuse of several kinds of measurement, and what is worth a look."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from scvae.choices import CountKind
from scvae.data.checkup.report import Finding, Kind, Report
from scvae.data.read.covariates import learn_covariates
from scvae.data.read.several import sources_of
from scvae.data.read.sources import Source, Sources
from scvae.errors import ConfigError, DataError
from scvae.models.label.learned import labels_to_learn
from scvae.models.prepare import DEMANDS_OF_OTHERS, layer_of, read_other

if TYPE_CHECKING:
    from anndata import AnnData


def check_several(
    data: Any,
    modalities: str | Mapping[str, str] | None,
    measured: Mapping[str, str] | None,
    layer: str | Mapping[str, str] | None,
    batch: str | None,
    covariates: Any,
    labels: str | None,
    unlabelled: str | None,
    counts: CountKind,
    check_rna: Callable[[AnnData, str | None], Report],
) -> Report:
    """Return what is found of every kind; `check_rna` looks at an AnnData of genes in a layer."""
    found: list[Finding] = []
    report = Report(())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sources = _attempt(found, lambda: sources_of(data, modalities, measured))
        for source in () if sources is None else sources.parts:
            assert sources is not None
            told = _attempt(found, partial(layer_of, source, sources, layer))
            if source.kind == "rna":
                report = check_rna(_with_obs(source, sources), told)
                found += [replace(one, text=source.retold(one.text)) for one in report.findings]
            else:
                _attempt(found, partial(_read, source, sources.n_obs, told, counts))
        if sources is not None and all(source.kind != "rna" for source in sources.parts):
            _attempt(found, lambda: learn_covariates(sources.obs, batch, covariates))
        if sources is not None:
            _attempt(found, lambda: labels_to_learn(sources, labels, unlabelled, "mixture", batch))
    found += [Finding("warning", Kind.COUNTS, str(one.message)) for one in caught]
    unique = {finding.text: finding for finding in found}
    return replace(report, findings=tuple(unique.values()))


def _attempt(found: list[Finding], look: Callable[[], Any]) -> Any:
    try:
        return look()
    except (DataError, ConfigError) as error:
        found.append(Finding("error", Kind.COUNTS, str(error)))
        return None


def _read(source: Source, n: int, layer: str | None, counts: CountKind) -> None:
    with source.in_words():
        for demand in DEMANDS_OF_OTHERS:
            demand(source.adata)
        read_other(source, n, layer, counts, {})


def _with_obs(source: Source, sources: Sources) -> AnnData:
    """Return the genes with all that is known of their cells, without a copy of the counts."""
    from anndata import AnnData

    obs = sources.obs if source.rows is None else sources.obs.iloc[source.rows]
    adata = source.adata
    if adata.obs.columns.equals(obs.columns):
        return adata
    return AnnData(adata.X, obs=obs.copy(), var=adata.var, layers=dict(adata.layers))
