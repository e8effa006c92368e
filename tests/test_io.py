"""Files of models: whole or not at all, read back to the bit, and never anything but a model."""

from __future__ import annotations

import json
import os
import pickle
import re
import socket
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from container import Container
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scvae.errors import FileError, ScvaeError
from scvae.io import FORMAT, KEY, check_writable, files, in_the_way, read_file, write_file

law = settings(deadline=None, derandomize=True, max_examples=60)
HEADER = {"name": "Ω", "genes": ["a", "b"], "numbers": {"x": [1, 2.5, None, True]}, "empty": {}}
TENSORS = {
    "weight": torch.arange(6.0).view(2, 3),
    "double": torch.tensor([1e-300, -0.0, 3.0], dtype=torch.float64),
    "whole": torch.tensor([2**62, -1]),
    "bytes": torch.tensor([0, 255], dtype=torch.uint8),
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


@pytest.mark.skipif(os.name != "posix", reason="permissions are of POSIX")
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o444])
def test_a_replaced_file_keeps_its_permissions(mode: int, tmp_path: Path) -> None:
    written(tmp_path).chmod(mode)
    assert written(tmp_path).stat().st_mode & 0o777 == mode
    assert_is_the_model(tmp_path / "model.scvae")


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "model.scvae").symlink_to(tmp_path / "elsewhere")
    assert_is_the_model(written(tmp_path))
    assert (tmp_path / "model.scvae").is_symlink()
    assert_is_the_model(tmp_path / "elsewhere")


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_pipe_is_written_into_and_stays_one(tmp_path: Path) -> None:
    path, got = tmp_path / "model.scvae", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()), daemon=True)
    reader.start()
    written(tmp_path)
    reader.join(60)
    assert path.is_fifo()
    assert got == [written(tmp_path, "file").read_bytes()]
    assert sorted(os.listdir(tmp_path)) == ["file", "model.scvae"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="devices of Linux")
def test_a_device_is_written_into_and_stays_one() -> None:
    before = os.stat("/dev/null").st_mode, os.stat("/dev/full").st_mode
    write_file("/dev/null", TENSORS, HEADER)
    with pytest.raises(FileError, match="/dev/full cannot be written: No space left"):
        write_file("/dev/full", TENSORS, HEADER)
    assert (os.stat("/dev/null").st_mode, os.stat("/dev/full").st_mode) == before


@pytest.mark.skipif(os.name != "posix", reason="sockets of POSIX")
def test_a_socket_is_left_alone(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "model.scvae"))
        with pytest.raises(FileError, match="cannot be written: it is a socket"):
            written(tmp_path)
    assert (tmp_path / "model.scvae").is_socket()


def test_whether_a_place_can_be_written_is_known_and_nothing_is_left(tmp_path: Path) -> None:
    path = written(tmp_path)
    check_writable(path)
    check_writable(tmp_path / "new")
    for wrong, why in ((tmp_path, "a folder"), (tmp_path / "no" / "x", "No such"), ("x" * 256, "")):
        with pytest.raises(FileError, match=f"cannot be written: .*{why}"):
            check_writable(wrong)
    assert os.listdir(tmp_path) == ["model.scvae"]
    assert_is_the_model(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "an HDF5 file"),
        (b"PK\x03\x04" + b"\0" * 99, "a zip archive"),
        (b"# notes\n", "its header would have"),
        (b"x", "it has 1 bytes"),
        (safetensors.torch.save({"w": torch.ones(2)}), "not one of scvae"),
        (b"", None),
    ],
)
def test_what_a_model_would_replace_is_known(
    content: bytes, what: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "there"
    path.write_bytes(content)
    found = in_the_way(path)
    assert (found is None) is (what is None)
    assert (what or "") in (found or "")


def test_a_file_of_scvae_is_in_the_way_of_another_kind_alone(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert in_the_way(path) is None
    assert in_the_way(path, "checkpoint") == "it is a 'model'"
    assert in_the_way(tmp_path / "absent") is None


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
    assert "is a folder, not a file" in failure(tmp_path)


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
    assert "is a safetensors file, but not one of scvae" in message


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


def test_a_newer_format_may_hold_what_this_one_cannot(tmp_path: Path) -> None:
    tensors = {"half": torch.ones(2, dtype=torch.bfloat16)}
    metadata = {KEY: json.dumps({"format": FORMAT + 1})}
    safetensors.torch.save_file(tensors, tmp_path / "new", metadata=metadata)
    assert "pip install --upgrade" in failure(tmp_path / "new")


def test_a_header_cannot_forge_the_format(tmp_path: Path) -> None:
    write_file(tmp_path / "model", TENSORS, {"format": 99, "a": 1})
    tensors, header = read_file(tmp_path / "model")
    assert header["a"] == 1
    assert tensors.keys() == TENSORS.keys()


# -- files that are no files -----------------------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.path.relpath(path))  # the full name may be longer than a socket's may be


SPECIAL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pipe": (pipe, "is a named pipe, not a file"),
    "socket": (listening, "is a socket, not a file"),
    "folder": (Path.mkdir, "is a folder, not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
    "broken link": (lambda path: path.symlink_to("nowhere"), "is not there"),
    "link to itself": (lambda path: path.symlink_to(path.name), "cannot be read"),
    "below a file": (lambda path: path.write_bytes(b""), "it is empty"),
}


@pytest.mark.skipif(os.name != "posix", reason="pipes, sockets and devices of POSIX")
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_not_a_file_is_refused_without_waiting(kind: str, tmp_path: Path) -> None:
    make, reason = SPECIAL[kind]
    make(tmp_path / "model")
    assert reason in failure(tmp_path / "model")


def test_names_that_no_file_can_have_are_refused(tmp_path: Path) -> None:
    assert "cannot be read" in failure(tmp_path / ("m" * 5000))
    assert "null" in failure(tmp_path / "a\0b")
    (tmp_path / "file").touch()
    assert "is not there" in failure(tmp_path / "file" / "model")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.chmod(0)
    assert "Permission denied" in failure(path)


# -- checksums -------------------------------------------------------------------------------------


def test_the_checksums_are_those_of_the_description_of_the_format(tmp_path: Path) -> None:
    file = Container.of(written(tmp_path).read_bytes())
    before = dict(file.metadata)
    assert file.sealed().metadata == before
    assert set(before) == {"scvae", "sha256_header", "sha256_tensors"}
    assert file.description["format"] == FORMAT
    assert file.description["versions"].keys() == {"scvae", "torch"}
    (tmp_path / "again").write_bytes(file.data())
    assert_is_the_model(tmp_path / "again")


def test_any_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    data = written(tmp_path).read_bytes()
    refused = 0
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        (tmp_path / "flipped").write_bytes(flipped)
        try:
            assert_is_the_model(tmp_path / "flipped")
        except FileError:
            refused += 1
    assert refused > 0.98 * len(data)


def test_altered_tensors_are_told_from_an_altered_header(tmp_path: Path) -> None:
    file = Container.of(written(tmp_path).read_bytes())
    body = file.body
    file.body = bytes(len(body))
    (tmp_path / "tensors").write_bytes(file.data())
    assert "its tensors were altered" in failure(tmp_path / "tensors")
    file.body = body
    file.table["weight"]["shape"] = [3, 2]
    (tmp_path / "header").write_bytes(file.data())
    assert "its header was altered" in failure(tmp_path / "header")


@pytest.mark.parametrize("sum_", ["sha256_header", "sha256_tensors"])
@pytest.mark.parametrize("value", [None, "", "0" * 64, 5])
def test_a_checksum_cannot_be_left_out(sum_: str, value: Any, tmp_path: Path) -> None:
    file = Container.of(written(tmp_path).read_bytes()).sealed()
    file.metadata[sum_] = value
    if value is None:
        del file.metadata[sum_]
    (tmp_path / "model").write_bytes(file.data())
    assert "checksum" in failure(tmp_path / "model")


# -- harm on purpose: the checksums agree ----------------------------------------------------------


def entry(**fields: Any) -> Callable[[Container], Any]:
    return lambda file: file.table["weight"].update(fields)


def described(**fields: Any) -> Callable[[Container], Any]:
    def change(file: Container) -> None:
        file.description = {**file.description, **fields}

    return change


def said(text: str) -> Callable[[Container], Any]:
    return lambda file: file.metadata.update(scvae=text)


def spelt(pattern: str, by: str) -> Callable[[Container], Any]:
    """Replace in the JSON of the header, after it was sealed."""

    def change(file: Container) -> None:
        made = json.dumps({"__metadata__": file.sealed().metadata, **file.table})
        file.text = re.sub(pattern, lambda match: by, made, count=1)
        assert file.text != made

    return change


def grow(file: Container) -> None:
    file.body += bytes(16)


def shrink(file: Container) -> None:
    file.body = file.body[:-1]


def overlap(file: Container) -> None:
    file.table["weight"]["data_offsets"] = list(file.table["strided"]["data_offsets"])
    file.table["weight"]["shape"] = file.table["strided"]["shape"]


def leave_a_gap(file: Container) -> None:
    file.table.pop("transposed")


HARM: dict[str, tuple[Callable[[Container], Any], str]] = {
    "more bytes than tensors": (grow, "bytes of tensors should follow its header"),
    "fewer bytes than tensors": (shrink, "bytes of tensors should follow its header"),
    "two tensors in one place": (overlap, "begins at byte"),
    "a gap": (leave_a_gap, "begins at byte"),
    "no tensors": (lambda file: file.table.clear(), "0 bytes of tensors should follow"),
    "many tensors": (
        lambda file: file.table.update({str(i): {} for i in range(70_000)}),
        "more than 65536",
    ),
    "huge": (entry(shape=[2**31, 2**31]), "has 24 bytes"),
    "huge and zero": (entry(shape=[2**50, 0]), "has shape"),
    "negative": (entry(shape=[-2, -3]), "has shape"),
    "fraction": (entry(shape=[2.0, 3.0]), "has shape"),
    "truth as a number": (entry(shape=[True, 6]), "has shape"),
    "not a number": (entry(shape=[float("nan"), 6]), "has shape"),
    "text as a shape": (entry(shape="23"), "has shape"),
    "too many dimensions": (entry(shape=[1] * 9), "has shape"),
    "beyond the end": (entry(data_offsets=[2**39, 2**39 + 24]), "begins at byte"),
    "backwards": (entry(data_offsets=[24, 0]), "has -24 bytes"),
    "no offsets": (entry(data_offsets=[]), "at []"),
    "unknown type": (entry(dtype="F8_E4M3"), "is of type 'F8_E4M3'"),
    "a list as type": (entry(dtype=["F32"]), "is of type ['F32']"),
    "another type": (entry(dtype="F64"), "has 24 bytes"),
    "unknown field": (entry(stride=1), "is not described by"),
    "missing field": (lambda file: file.table["weight"].pop("shape"), "is not described by"),
    "no entry": (lambda file: file.table.update(weight=[1]), "is not described by"),
    "long name": (lambda file: file.table.update({"n" * 10**6: 1}), "is not described by"),
    "a model as another kind": (described(kind="checkpoint"), "it is a 'checkpoint'"),
    "no kind": (described(kind=None), "it is a None"),
    "content no object": (described(content=[1]), "describes nothing"),
    "format 0": (described(format=0), "has format 0"),
    "format true": (described(format=True), "has format True"),
    "format as text": (described(format="2"), "has format '2'"),
    "format with a fraction": (described(format=2.0), "has format 2.0"),
    "huge format": (described(format=10**19), "this scvae reads up to"),
    "content format 0": (described(content_format=0), "has content_format 0"),
    "content format null": (described(content_format=None), "has content_format None"),
    "huge content format": (described(content_format=10**19), "this scvae reads up to"),
    "no JSON": (said("{"), "its header is damaged"),
    "a list": (said("[]"), "its header is not a JSON object"),
    "a null": (said("null"), "its header is not a JSON object"),
    "deep": (said("[" * 10**5), "nested too deeply"),
    "deep, closed": (said("[" * 500 + "]" * 500), "nested too deeply"),
    "deeper than any": (
        described(
            content={"a": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}
        ),
        "nested too deeply",
    ),
    "many lists": (said("[" + "[]," * 300_000 + "[]]"), "too many objects and lists"),
    "many digits": (said('{"format": ' + "9" * 5000 + "}"), "more than 64 bits"),
    "half of a character": (said('{"format": 2, "a": "\\ud800"}'), "surrogates not allowed"),
    "twice": (said('{"format": 2, "format": 1}'), "a field twice"),
    "metadata is text": (
        spelt('"__metadata__": {.*?"sha256_tensors": "[^"]*"}', '"__metadata__": "all"'),
        "not one of scvae",
    ),
    "description is a number": (lambda file: file.metadata.update(scvae=2), "not one of scvae"),
    "a tensor twice": (spelt('"scalar"', '"weight"'), "a field twice"),
    "no UTF-8": (spelt('"scalar"', '"\ud800"'), "codec can't decode"),
    "nothing else": (spelt(".*", "[]"), "is not a JSON object"),
    "UTF-16": (
        lambda file: setattr(file, "text", "{}".encode("utf-16").decode("latin-1")),
        "damaged",
    ),
}


@pytest.mark.parametrize("kind", HARM)
def test_harm_on_purpose_is_refused_in_few_words_and_little_memory(
    kind: str, tmp_path: Path
) -> None:
    file = Container.of(written(tmp_path).read_bytes())
    change, reason = HARM[kind]
    change(file)
    (tmp_path / "model").write_bytes(file.data() if file.text else file.sealed().data())
    size = (tmp_path / "model").stat().st_size
    tracemalloc.start()
    message = failure(tmp_path / "model")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reason in message
    assert len(message) < 400 + len(str(tmp_path))
    assert peak < 2**20 + 30 * size


@pytest.mark.parametrize("length", [0, 1, 2, 10**4, 2**25, 2**31, 2**62, 2**63, 2**64 - 1])
def test_a_wrong_length_of_the_header_is_refused(length: int, tmp_path: Path) -> None:
    data = written(tmp_path).read_bytes()
    (tmp_path / "model").write_bytes(length.to_bytes(8, "little") + data[8:])
    tracemalloc.start()
    assert "header" in failure(tmp_path / "model")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_header_longer_than_any_is_neither_written_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    monkeypatch.setattr(files, "LONGEST_HEADER", 100)
    assert "its header would have" in failure(path)
    with pytest.raises(FileError, match="cannot be written: its header has"):
        written(tmp_path, "other")
    assert os.listdir(tmp_path) == ["model.scvae"]


@pytest.mark.parametrize(
    ("tensors", "content"),
    [
        ({"half": torch.ones(2, dtype=torch.bfloat16)}, {}),
        ({"mask": torch.tensor([True])}, {}),
        ({}, {"name": "\ud800"}),
        ({}, {"number": 2**70}),
        ({}, [1]),
    ],
)
def test_what_could_not_be_read_is_not_written(tensors: Any, content: Any, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be written"):
        write_file(tmp_path / "model", tensors, content)
    assert os.listdir(tmp_path) == []


def test_a_file_larger_than_memory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise MemoryError

    path = written(tmp_path)
    monkeypatch.setattr(files, "_read_tensors", refuse)
    assert "larger than the memory" in failure(path)


# -- older formats ---------------------------------------------------------------------------------


def test_a_format_is_read_by_its_migrations_and_not_without(tmp_path: Path) -> None:
    path = foreign(tmp_path, {KEY: json.dumps({"format": 1, "old": 1})})
    assert "was written in format 1, which is no longer read" in failure(path)

    def migrate(tensors: dict[str, Tensor], content: dict[str, Any]) -> Any:
        return {"w": tensors["w"] + 1}, {"new": content["old"] + 1}

    tensors, content = read_file(path, migrations={1: migrate}, content_format=2)
    assert tensors["w"].tolist() == [2, 2]
    assert content == {"new": 2}


def test_the_content_is_migrated_by_its_own_number(tmp_path: Path) -> None:
    """A file from before there were two numbers had one for both."""

    def step(tensors: dict[str, Tensor], content: dict[str, Any]) -> Any:
        return tensors, {"steps": content.get("steps", 0) + 1}

    migrations = dict.fromkeys(range(1, 9), step)
    for number in range(1, 9):
        write_file(tmp_path / "model", TENSORS, {}, content_format=number)
        content = read_file(tmp_path / "model", migrations=migrations, content_format=9)[1]
        assert content == {"steps": 9 - number}
    old = foreign(tmp_path, {KEY: json.dumps({"format": 1})})
    assert read_file(old, migrations=migrations, content_format=9)[1] == {"steps": 8}
    file = Container.of((tmp_path / "model").read_bytes())
    file.description = {k: v for k, v in file.description.items() if k != "content_format"}
    old.write_bytes(file.sealed().data())
    assert read_file(old, migrations=migrations, content_format=9)[1] == {"steps": 7}


def test_content_of_a_newer_format_asks_for_an_update(tmp_path: Path) -> None:
    write_file(tmp_path / "model", TENSORS, {}, content_format=8)
    with pytest.raises(FileError, match=r"has file format 8; .* up to 7\. Update it"):
        read_file(tmp_path / "model", content_format=7)


@pytest.mark.parametrize(
    "error", [KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError]
)
def test_a_migration_of_nonsense_is_a_damaged_file(error: type[Exception], tmp_path: Path) -> None:
    def migrate(tensors: dict[str, Tensor], content: dict[str, Any]) -> Any:
        raise error("nonsense")

    path = foreign(tmp_path, {KEY: json.dumps({"format": 1})})
    with pytest.raises(FileError, match="nonsense"):
        read_file(path, migrations={1: migrate})
