"""Files of models: whole or not at all, read back to the bit, and never anything but a model."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scvae.errors import FileError, ScvaeError
from scvae.io import FORMAT, KEY, read_file, write_file

law = settings(deadline=None, derandomize=True, max_examples=60)
HEADER = {"name": "Ω", "genes": ["a", "b"], "numbers": {"x": [1, 2.5, None, True]}, "empty": {}}
TENSORS = {
    "weight": torch.arange(6.0).view(2, 3),
    "double": torch.tensor([1e-300, -0.0, 3.0], dtype=torch.float64),
    "whole": torch.tensor([2**62, -1]),
    "mask": torch.tensor([True, False]),
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "scalar": torch.tensor(4.0),
    "none": torch.zeros(0, 3),
    "transposed": torch.arange(6.0).view(2, 3).T,
    "strided": torch.arange(10.0)[::3],
    "learned": torch.ones(2, requires_grad=True),
}


def written(folder: Path, name: str = "model.scvae") -> Path:
    write_file(folder / name, TENSORS, HEADER)
    return folder / name


def assert_is_the_model(path: Path) -> None:
    tensors, header = read_file(path)
    assert header == HEADER
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor.detach())


def failure(path: Path) -> str:
    with pytest.raises(FileError) as caught:
        read_file(path)
    assert isinstance(caught.value, ScvaeError)
    assert isinstance(caught.value, OSError)
    assert str(path) in str(caught.value)
    return str(caught.value)


# -- round trip ------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert_is_the_model(written(tmp_path))
    assert os.listdir(tmp_path) == ["model.scvae"]


def test_a_path_may_be_a_string_and_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_file("model", TENSORS, HEADER)
    assert_is_the_model(Path("model"))


def test_writing_again_replaces(tmp_path: Path) -> None:
    write_file(tmp_path / "model.scvae", {"old": torch.ones(1)}, {"old": 1})
    assert_is_the_model(written(tmp_path))


def test_nothing_of_the_callers_is_changed(tmp_path: Path) -> None:
    before, header = {k: v.clone() for k, v in TENSORS.items()}, json.dumps(HEADER)
    written(tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in TENSORS.items())
    assert json.dumps(HEADER) == header
    assert TENSORS["learned"].requires_grad


def test_two_writes_give_the_same_bytes(tmp_path: Path) -> None:
    assert written(tmp_path).read_bytes() == written(tmp_path, "again").read_bytes()


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    assert safetensors.torch.load_file(written(tmp_path)).keys() == TENSORS.keys()


@pytest.mark.skipif(os.name != "posix", reason="permissions are of POSIX")
def test_the_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    assert written(tmp_path).stat().st_mode == (tmp_path / "plain").stat().st_mode


# -- a failing write -------------------------------------------------------------------------------


def fail_in(name: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(os, name, refuse)


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_failing_write_leaves_the_old_file(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    before = path.read_bytes()
    fail_in(step, OSError(28, "No space left on device"), monkeypatch)
    with pytest.raises(FileError, match=r"model\.scvae cannot be written: No space left"):
        write_file(path, {"new": torch.ones(3)}, {"new": 1})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.scvae"]
    assert_is_the_model(path)


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    fail_in("replace", KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        write_file(path, {"new": torch.ones(3)}, {"new": 1})
    assert os.listdir(tmp_path) == ["model.scvae"]
    assert_is_the_model(path)


def test_a_header_that_is_not_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(TypeError):
        write_file(path, TENSORS, {"bad": {1, 2}})
    assert os.listdir(tmp_path) == ["model.scvae"]
    assert_is_the_model(path)


def test_a_folder_that_is_not_there_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"model\.scvae cannot be written: No such file"):
        written(tmp_path / "nowhere")


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model.scvae").mkdir()
    with pytest.raises(FileError, match="cannot be written"):
        written(tmp_path)
    assert os.listdir(tmp_path) == ["model.scvae"]


# -- files that are no model -----------------------------------------------------------------------


def test_a_missing_file_and_a_folder_are_not_there(tmp_path: Path) -> None:
    assert "is not there" in failure(tmp_path / "model.scvae")
    assert "is not there" in failure(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello\n",
        b"x" * 5000,
        bytes(64),
        b"\xff" * 64,
        pickle.dumps({"weight": [1.0]}),
        b"PK\x03\x04" + bytes(100),
        b"\x89HDF\r\n\x1a\n" + bytes(100),
    ],
    ids=["empty", "text", "long text", "zeros", "ones", "pickle", "zip", "hdf5"],
)
def test_another_kind_of_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(content)
    assert "Give a file that model.save(path) wrote" in failure(tmp_path / "other")


def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    data = written(tmp_path).read_bytes()
    for length in {*range(0, len(data), 37), 7, 8, 9, len(data) - 1}:
        (tmp_path / "cut").write_bytes(data[:length])
        assert "damaged" in failure(tmp_path / "cut")


def test_a_file_with_something_appended_is_refused(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(written(tmp_path).read_bytes() + b"more")
    assert "damaged" in failure(tmp_path / "long")


@law
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_flipped_byte_of_the_header_never_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int
) -> None:
    path = written(tmp_path_factory.mktemp("flip"))
    data = bytearray(path.read_bytes())
    data[position % (8 + int.from_bytes(data[:8], "little"))] ^= flip
    path.write_bytes(data)
    try:
        tensors, header = read_file(path)
    except FileError:
        return
    assert isinstance(header, dict)
    assert all(isinstance(tensor, Tensor) for tensor in tensors.values())


def foreign(folder: Path, metadata: dict[str, str] | None) -> Path:
    safetensors.torch.save_file({"w": torch.ones(2)}, folder / "foreign", metadata=metadata)
    return folder / "foreign"


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_safetensors_of_others_are_refused(metadata: dict | None, tmp_path: Path) -> None:
    message = failure(foreign(tmp_path, metadata))
    assert "is a safetensors file, but not a model of scvae" in message


@pytest.mark.parametrize(
    "header", ["", "{", "null", "[1, 2]", "3", "{}", '{"format": "new"}', '{"format": null}']
)
def test_a_damaged_header_is_named(header: str, tmp_path: Path) -> None:
    assert "header" in failure(foreign(tmp_path, {KEY: header}))


@pytest.mark.parametrize("version", [FORMAT + 1, FORMAT + 100])
def test_a_newer_format_asks_for_an_update(version: int, tmp_path: Path) -> None:
    message = failure(foreign(tmp_path, {KEY: json.dumps({"format": version})}))
    assert f"has file format {version}; this scvae reads up to {FORMAT}" in message
    assert "pip install --upgrade scvae-torch" in message


def test_a_header_cannot_forge_the_format(tmp_path: Path) -> None:
    write_file(tmp_path / "model", TENSORS, {"format": 99, "a": 1})
    tensors, header = read_file(tmp_path / "model")
    assert header["a"] == 1
    assert tensors.keys() == TENSORS.keys()
