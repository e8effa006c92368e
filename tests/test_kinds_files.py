"""Files of models of several kinds of measurement: they answer as they did when they were kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cells import FILES
from kinds import KINDS, answers, fitted_kinds

import scvae

SINCE = 5  # the format that first held several kinds
VERSIONS = range(SINCE, 1 + max(int(path.stem.split("_")[1]) for path in FILES.glob("kinds_*.npz")))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_model_of_several_kinds_answers_as_it_did(version: int, tmp_path: Path) -> None:
    mdata, model = fitted_kinds(), scvae.load(FILES / f"kinds_{version}.scvae", device="cpu")
    assert tuple(model.modalities) == KINDS
    assert model.origin.parts["protein"].measured == "seen"
    found = answers(model, mdata)
    with np.load(FILES / f"kinds_{version}.npz") as expected:
        assert found.keys() == set(expected)
        for name, values in found.items():
            kept = expected[name]
            np.testing.assert_allclose(values, kept, rtol=1e-3, atol=1e-4, err_msg=name)
            assert np.nanstd(kept, axis=0).max() > 0.05, name  # else this says nothing
    model.save(tmp_path / "again")
    again = scvae.load(tmp_path / "again", device="cpu")
    assert (again.architecture, again.origin) == (model.architecture, model.origin)
    np.testing.assert_array_equal(again.embed(mdata), model.embed(mdata))


def test_there_is_a_file_of_several_kinds_of_every_format_since_the_first() -> None:
    from scvae.models.keep.migrations import FORMAT

    assert [*VERSIONS] == [*range(SINCE, FORMAT + 1)]
