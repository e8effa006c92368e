"""Genes that are there several times, under names that differ in what is no part of a name."""

from __future__ import annotations

import re

import pandas as pd

from scvae.data.checkup.report import Finding, Kind

# What stands behind the name of a gene, in words, and the least share of the genes that have it
# beside others of their name, for which chance is no explanation.
ENDS: tuple[tuple[str, str, float], ...] = (
    (
        "unspliced or ambiguous counts of genes",
        r"[-_.](?:U|I|A|unspliced|nascent|intron|intronic|ambiguous)$",
        0.1,
    ),
    ("other versions of genes", r"(?<=\d{11})\.\d+$", 0.0),
    ("genes with a space too many", r"^\s+|\s+$", 0.0),
)


def doubled_genes(genes: pd.Index, layer: str | None, *, is_raw: bool) -> list[Finding]:
    """Find features that are parts or versions of one gene, with the call that adds them up."""
    names = pd.Series(genes.astype(str))
    held = "adata.raw.to_adata()" if is_raw else "adata"
    frame = f"{held}.to_df()" if layer is None or is_raw else f"adata.to_df({layer!r})"
    findings, lines = [], "\n".join(names)  # to search all at once: nearly always in vain
    for what, end, least in ENDS:
        if re.search(end, lines, re.MULTILINE) is None:
            continue
        plain = names.str.replace(end, "", regex=True)
        others = (plain != names) & plain.duplicated(keep=False)
        if others.sum() <= least * len(names):
            continue
        text = (
            f"{int(others.sum()):,} of {len(names):,} features are {what} that are there by "
            f"another name, too (first: {names[others].iloc[0]!r}): one gene is fitted as several. "
            f"Add them up: adata = anndata.AnnData({frame}.T.groupby({held}.var_names.str.replace("
            f"{end!r}, '', regex=True).to_numpy(), sort=False).sum().T, adata.obs)"
        )
        findings.append(Finding("warning", Kind.GENES, text))
    return findings
