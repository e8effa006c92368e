"""Laws of counts='rounded': estimates of counts are fitted as whole numbers, functions of counts
are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import scvae
from scvae.cli import main
from scvae.data.read.choice import look
from scvae.data.read.survey import survey
from tests.test_door import cells, pasted, refusal

law = settings(deadline=None, derandomize=True, max_examples=80)
QUICK: dict[str, Any] = {"max_steps": 3, "progress": False}
Made = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def deep(seed: int, n: int = 40, g: int = 60) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(0.7, 4.0, (1, g)), (n, g)).astype(np.float64)


def _shared(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return counts with reads that are shared in equal parts among 2 to 5 genes, as of alevin."""
    return x + (rng.random(x.shape) < 0.3) / rng.integers(2, 6, x.shape)


def _table(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return expected counts in two decimals, as RSEM writes them."""
    return np.round(60 * x + (rng.random(x.shape) < 0.4) * rng.gamma(1.0, 9.0, x.shape), 2)


def _soup(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return counts less what every cell has of one profile, as SoupX takes it off."""
    depth = x.sum(1, keepdims=True) * rng.lognormal(0.0, 0.2, (len(x), 1))
    return np.maximum(0, x - 0.1 * depth * x.sum(0) / x.sum())


def _cleaned(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the share of counts that is the cell's own and not of others, as decontX takes it."""
    other, own = rng.beta(2, 20, (len(x), 1)), rng.gamma(2.0, 1.0, (1, x.shape[1]))
    return x * (1 - other) * own / ((1 - other) * own + other)


def _share(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(x.sum(1, keepdims=True), 1) * 1e4


def _scaled(x: np.ndarray, most: float = np.inf) -> np.ndarray:
    """Return genes divided by their spread, as sc.pp.scale(zero_center=False, max_value=most)."""
    return np.minimum(x / np.maximum(x.std(0, ddof=1), 1e-12), most)


def _per_length(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return transcripts per million."""
    rate = x / rng.uniform(0.3, 9.0, x.shape[1])
    return rate / np.maximum(rate.sum(1, keepdims=True), 1e-12) * 1e6


ESTIMATES: dict[str, Made] = {
    "ambient": lambda x, rng: x * rng.uniform(0.7, 1.0, x.shape),
    "subtracted": lambda x, rng: np.maximum(0, x - rng.gamma(1.0, 0.1, (1, x.shape[1]))),
    "shared": _shared,
    "table": _table,
    "soup": _soup,
    "cleaned": _cleaned,
}
FUNCTIONS: dict[str, Made] = {
    "shares": lambda x, rng: _share(x),
    "log of shares": lambda x, rng: np.log1p(_share(x)),
    "log of shares of some genes": lambda x, rng: np.log1p(_share(x))[:, :30],
    "two decimals of it": lambda x, rng: np.round(np.log1p(_share(x)), 2),
    "log": lambda x, rng: np.log1p(x),
    "log2": lambda x, rng: np.log2(1 + x),
    "two decimals of log2": lambda x, rng: np.round(np.log2(1 + x), 2),
    "root": lambda x, rng: np.sqrt(x),
    "two decimals of the root": lambda x, rng: np.round(np.sqrt(x), 2),
    "halves": lambda x, rng: x / 2,
    "thousandths": lambda x, rng: x / 1000,
    "scaled": lambda x, rng: _scaled(x),
    "scaled log": lambda x, rng: _scaled(np.log1p(x), 10),
    "scaled and cut log": lambda x, rng: _scaled(np.log1p(x), 2),
    "scaled log of shares": lambda x, rng: _scaled(np.log1p(_share(x)), 10),
    "scaled log of shares of some genes": lambda x, rng: _scaled(np.log1p(_share(x)))[:, :30],
    "scaled shares": lambda x, rng: _scaled(_share(x)),
    "scaled root": lambda x, rng: _scaled(np.sqrt(x)),
    "share of the largest": lambda x, rng: x / np.maximum(x.max(0), 1),
    "per length": lambda x, rng: x / rng.uniform(0.3, 9.0, x.shape[1]),
    "per million of some genes": lambda x, rng: _per_length(x, rng)[:, :30],
    "log of per million of some genes": lambda x, rng: np.log1p(_per_length(x, rng))[:, :30],
    "log2 of per million of some genes": lambda x, rng: np.log2(1 + _per_length(x, rng))[:, :30],
    "log over the mean": lambda x, rng: np.log1p(x / np.exp(np.log1p(x).mean(0))),
}


@law
@given(
    st.integers(0, 999),
    st.sampled_from(list(ESTIMATES)),
    st.sampled_from([np.float32, float]),
    st.booleans(),
)
def test_estimates_are_taken_as_the_nearest(seed: int, name: str, dtype: type, some: bool) -> None:
    x = ESTIMATES[name](deep(seed), np.random.default_rng(seed)).astype(dtype)
    columns = np.arange(59, 20, -1) if some else None
    for matrix in (x, sparse.csr_matrix(x), sparse.csc_matrix(x)):
        assert survey(matrix).may_be_rounded
        seen = survey(matrix, columns, keep=True, estimates=True)
        nearest = np.rint(x)
        np.testing.assert_array_equal(
            seen.counts.toarray(), nearest if columns is None else nearest[:, columns]
        )
        assert seen.estimates + seen.rounded == (x != nearest).sum()


@law
@given(st.integers(0, 999), st.sampled_from(list(FUNCTIONS)), st.sampled_from([np.float32, float]))
def test_functions_of_counts_are_refused_nevertheless(seed: int, name: str, dtype: type) -> None:
    x = FUNCTIONS[name](deep(seed), np.random.default_rng(seed)).astype(dtype)
    seen = survey(x, keep=True, estimates=True)
    assert not seen.may_be_rounded
    assert seen.kept is None
    message = refusal(scvae.fit, AnnData(x), counts="rounded", **QUICK)
    assert "were normalised, or are a function of counts" in message
    assert message in [f.text for f in scvae.check(AnnData(x), counts="rounded").errors]


def ambient(seed: int = 0) -> AnnData:
    adata = cells()
    share = np.random.default_rng(seed).uniform(0.7, 1.0, adata.shape)
    adata.X = sparse.csr_matrix(adata.X.multiply(share).astype(np.float32))
    return adata


def test_a_fit_of_estimates_is_the_fit_of_what_they_are_rounded_to(tmp_path: Path) -> None:
    adata, whole = ambient(), ambient()
    whole.X = np.rint(whole.X)
    model = scvae.fit(adata, counts="rounded", **QUICK)
    other = scvae.fit(whole, **QUICK)
    np.testing.assert_array_equal(adata.obsm["X_scvae"], whole.obsm["X_scvae"])
    assert model.record.digest == other.record.digest
    assert adata.uns["scvae"]["rounded"]
    assert "rounded" in str(model.summary())
    assert "rounded" not in str(other.summary())
    model.save(tmp_path / "model")
    again = scvae.load(tmp_path / "model")
    for asked in (model, again):
        for name in ("embed", "elbo", "normalized", "log_likelihood", "predictive_check", "amount"):
            np.testing.assert_array_equal(getattr(asked, name)(adata), getattr(other, name)(whole))
    with pytest.raises(scvae.DataError, match="non-integer"):
        other.embed(adata)


@pytest.mark.parametrize("n", [2, 15, 40])
def test_few_cells_of_large_counts_are_estimates_too(n: int) -> None:
    """Powers of ten of them overflow, which makes no ties."""
    adata = scvae.simulate(150, 40, seed=0)
    off = np.random.default_rng(0).uniform(-0.4, 0.4, adata.X.nnz).astype(np.float32)
    adata.X.data += off
    model = scvae.fit(adata, counts="rounded", **QUICK)
    assert model.embed(adata[:n].copy()).shape == (n, 30)


def test_other_faults_are_refused_nevertheless() -> None:
    for value, word in ((np.nan, "NaN"), (-0.4, "negative"), (np.inf, "infinite")):
        adata = ambient()
        adata.X[3, 4] = value
        message = refusal(scvae.fit, adata, counts="rounded")
        assert f"{word} values (first: {value:.6g} at cell 'cell_3', gene 'Gene4')" in message
        assert "function of counts" not in message


@pytest.mark.parametrize("layer", [None, "soup", "raw"])
def test_the_error_of_fractions_names_the_remedy(layer: Any) -> None:
    adata = ambient()
    adata.layers["soup"], adata.raw = adata.X.copy(), adata
    asked = {} if layer is None else {"layer": layer}
    message = refusal(scvae.fit, adata, **asked)
    given = "".join(f", {name}={value!r}" for name, value in asked.items())
    assert f"scvae.fit(adata{given}, counts='rounded')" in message
    assert scvae.fit(adata, counts="rounded", **asked, **QUICK).origin.counts == "rounded"


def test_cells_that_rounding_empties_are_left_out_by_the_call() -> None:
    adata = ambient()
    x = adata.X.toarray()
    x[[3, 7]] = np.random.default_rng(0).uniform(0.1, 0.4, (2, 20))
    adata.X = x
    for genes in (None, [f"Gene{i}" for i in range(12)]):
        message = refusal(scvae.fit, adata, genes=genes, counts="rounded")
        mended = pasted(message, adata, genes=genes)
        model = scvae.fit(mended, genes=genes, counts="rounded", **QUICK)
        assert len(mended) == 78
        assert len(pasted(refusal(model.embed, adata), adata, model=model)) == 78


@pytest.mark.parametrize(("small", "level"), [(0, "info"), (12, "warning")])
def test_what_rounding_changes_is_told(small: int, level: str) -> None:
    adata = ambient()
    x = adata.X.toarray()
    x[:, :small] = np.random.default_rng(0).uniform(0.2, 0.49, (80, small))
    adata.X = x
    findings = scvae.check(adata, counts="rounded").findings
    (found,) = [f for f in findings if "fractions in adata.X" in f.text]
    change = np.rint(x).sum() / x.sum() - 1
    assert (found.level, abs(change) > 0.1) == (level, level == "warning")
    assert f"{change:+.1%}" in found.text


def test_a_layer_of_estimates_is_found_beside_log_values() -> None:
    adata = ambient()
    adata.layers["soup"] = adata.X.copy()
    adata.X = np.log1p(cells().X)
    assert look(adata, counts="rounded").layer == "soup"


def test_the_command_line_takes_estimates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, model = (str(tmp_path / name) for name in ("in.h5ad", "out.h5ad", "m.scvae"))
    adata = ambient()
    adata.write_h5ad(source)
    fit = ["fit", source, "-o", out, "--quiet", "--max-steps", "3", "--model", model]
    assert main(fit) == 1
    assert "--counts rounded" in capsys.readouterr().err
    assert main(["check", source, "--counts", "rounded"]) == 0
    assert main([*fit, "--counts", "rounded"]) == 0
    assert main(["embed", model, source, "-o", str(tmp_path / "other.h5ad"), "--quiet"]) == 0


@pytest.mark.parametrize("counts", ["Rounded", None, True, 1])
def test_counts_are_whole_or_rounded(counts: Any) -> None:
    for function in (scvae.fit, scvae.check):
        with pytest.raises(scvae.ConfigError, match="give one of 'whole', 'rounded'"):
            function(ambient(), counts=counts)


GENE_BY_GENE = [name for name in FUNCTIONS if name.startswith("scaled") or name == "per length"]


@pytest.mark.parametrize("name", GENE_BY_GENE)
def test_check_tells_of_genes_that_were_divided(name: str) -> None:
    adata = AnnData(FUNCTIONS[name](deep(1), np.random.default_rng(1)))
    for counts in ("whole", "rounded"):
        texts = [f.text for f in scvae.check(adata, counts=counts).warnings]  # type: ignore[arg-type]
        assert any("looks divided gene by gene" in text for text in texts)
    assert "counts='rounded'" not in refusal(scvae.fit, adata)
