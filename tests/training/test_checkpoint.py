"""Model files: what goes in comes out, a failed write harms nothing, and what is broken is refused in words."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import resource
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from thaw.errors import ModelFileError, ThawError
from thaw.training.checkpoint import HEADER, read_tensors, write_tensors

VERSION = 3
LIMIT_BYTES = 4096


def a_file(path: Path, fill: float = 1.0, count: int = 8) -> bytes:
    write_tensors(path, {"a": torch.full((count, 3), fill), "b": torch.arange(5)}, {"version": VERSION, "fill": fill})
    return path.read_bytes()


def test_tensors_of_every_kind_come_back(tmp_path):
    base = torch.randn(4, 6)
    image = torch.randn(2, 3, 4, 5)
    tensors = {
        **{str(dtype): torch.tensor([[0.0, 1.5], [-2.0, 3.0]]).to(dtype) for dtype in (torch.float32, torch.float64)},
        **{str(dtype): torch.randn(3, 2).to(dtype) for dtype in (torch.bfloat16, torch.float16)},
        **{str(dtype): torch.tensor([0, 1, 100]).to(dtype) for dtype in (torch.int64, torch.int32, torch.int8)},
        "uint8": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(7.25),
        "empty": torch.zeros(0, 3),
        "special": torch.tensor([float("inf"), float("-inf"), -0.0]),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "transposed": base.T,
        "shared": base,
        "part": base[1:3],
        "strided": base[:, ::2],
        "channels.last": image.to(memory_format=torch.channels_last),
    }
    write_tensors(tmp_path / "model.safetensors", tensors, {"version": VERSION})
    made, _ = read_tensors(tmp_path / "model.safetensors", version=VERSION)
    assert made.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert made[name].dtype == tensor.dtype, name
        assert made[name].shape == tensor.shape, name
        assert made[name].tolist() == tensor.tolist(), name
        assert not made[name].requires_grad
    assert made["special"].signbit().tolist() == [False, True, True]


def test_the_header_comes_back(tmp_path):
    header = {
        "version": VERSION,
        "classes": ["Gänseblümchen", "大", 'quo"te\n'],
        "nested": {"numbers": [1, 2.5, -1e-30, 0.1], "none": None, "yes": True},
    }
    write_tensors(tmp_path / "m", {}, header)
    assert read_tensors(tmp_path / "m", version=VERSION) == ({}, header)


def test_what_is_read_does_not_hold_on_to_the_file(tmp_path):
    path = tmp_path / "m"
    a_file(path, fill=1.0)
    tensors, _ = read_tensors(path, version=VERSION)
    a_file(path, fill=2.0)
    assert tensors["a"].eq(1.0).all()


def test_writing_leaves_one_file(tmp_path):
    a_file(tmp_path / "m", fill=1.0)
    a_file(tmp_path / "m", fill=2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert read_tensors(tmp_path / "m", version=VERSION)[1]["fill"] == 2.0


def full_disk(*_args) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, where, is_there):
    path = tmp_path / "m"
    old = a_file(path) if is_there else None
    if where == "fsync":
        monkeypatch.setattr(os, "fsync", full_disk)
    else:
        monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(ThawError, match=r"cannot write .*No space left") as caught:
        a_file(path, fill=2.0)
    assert str(path) in str(caught.value)
    assert "out=" in str(caught.value)
    assert list(tmp_path.iterdir()) == ([path] if is_there else [])
    assert not is_there or path.read_bytes() == old


@contextlib.contextmanager
def files_of_at_most(limit_bytes: int):
    """The system cuts off what goes beyond, in the middle of a write, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_is_cut_off_leaves_the_old_file(tmp_path):
    path = tmp_path / "m"
    old = a_file(path)
    error = None
    with files_of_at_most(LIMIT_BYTES):
        try:
            write_tensors(path, {"a": torch.zeros(LIMIT_BYTES)}, {"version": VERSION})
        except ThawError as caught:
            error = caught
    assert error is not None
    assert "cannot write" in str(error)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ThawError, match=r"cannot write .*No such file"):
        a_file(tmp_path / "nowhere" / "m")


@pytest.mark.parametrize("eighths", range(8))
def test_a_truncated_file_is_refused(tmp_path, eighths):
    path = tmp_path / "m"
    content = a_file(path, count=200)
    path.write_bytes(content[: len(content) * eighths // 8])
    with pytest.raises(ModelFileError, match="truncated") as caught:
        read_tensors(path, version=VERSION)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("lost", [1, 3, 4])
def test_the_last_bytes_are_missed(tmp_path, lost):
    path = tmp_path / "m"
    path.write_bytes(a_file(path)[:-lost])
    with pytest.raises(ModelFileError, match="truncated"):
        read_tensors(path, version=VERSION)


def with_header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


GARBAGE = {
    "text": b"not a model at all\n" * 50,
    "zeros": bytes(1000),
    "ones": b"\xff" * 1000,
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00" * 20,
    "huge header": struct.pack("<Q", 2**62) + b"{}",
    "no JSON": with_header(b"{nothing"),
    "no UTF-8": with_header(b'{"\xff\xfe": 1}'),
    "a list": with_header(b"[]"),
    "deep": with_header(b"[" * 100_000),
    "deep object": with_header(b'{"a":' * 100_000),
}


@pytest.mark.parametrize("name", list(GARBAGE))
def test_garbage_is_refused(tmp_path, name):
    path = tmp_path / "m"
    path.write_bytes(GARBAGE[name])
    with pytest.raises(ModelFileError, match="not a file that thaw wrote"):
        read_tensors(path, version=VERSION)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {HEADER: ""},
        {HEADER: "{"},
        {HEADER: "[" * 200_000},
        {HEADER: '{"a":' * 200_000},
        {HEADER: "NaN2"},
        {HEADER: '{"version": NaN}'},
        {HEADER: '{"version": 3, "version": 3}'},
        *({HEADER: text} for text in ("[3]", "3", '"version"', "null")),
    ],
)
def test_a_file_with_another_header_is_refused(tmp_path, metadata):
    path = tmp_path / "m"
    save_file({"a": torch.zeros(2)}, path, metadata)
    with pytest.raises(ModelFileError, match="not a file that thaw wrote"):
        read_tensors(path, version=VERSION)


@pytest.mark.parametrize("header", [{"version": 4}, {"version": "3"}, {"version": None}, {"version": True}, {}])
def test_another_version_is_refused(tmp_path, header):
    path = tmp_path / "m"
    save_file({"a": torch.zeros(2)}, path, {HEADER: json.dumps(header)})
    with pytest.raises(ModelFileError, match="this thaw reads version 3"):
        read_tensors(path, version=VERSION)


def test_a_missing_file_and_a_folder_are_told(tmp_path):
    with pytest.raises(ModelFileError, match="nowhere does not exist"):
        read_tensors(tmp_path / "nowhere", version=VERSION)
    with pytest.raises(ModelFileError):
        read_tensors(tmp_path, version=VERSION)


def test_no_damage_to_the_header_gives_another_kind_of_error(tmp_path):
    path = tmp_path / "m"
    content = a_file(path)
    end = 8 + struct.unpack("<Q", content[:8])[0]
    whole = contents_of(path)
    for place in range(end):
        for change in (0x01, 0x10, 0x80):
            path.write_bytes(content[:place] + bytes([content[place] ^ change]) + content[place + 1 :])
            try:
                found = contents_of(path)
            except ModelFileError:
                continue
            # White space of the container, at most: what is read is what was written.
            assert found == whole, (place, change)


def contents_of(path: Path) -> tuple[dict, dict]:
    tensors, header = read_tensors(path, version=VERSION)
    return {name: (tensor.dtype, tensor.shape, tensor.numpy().tobytes()) for name, tensor in tensors.items()}, header


def test_a_changed_bit_of_the_tensors_is_found_wherever_it_is(tmp_path):
    path = tmp_path / "m"
    content = a_file(path)
    begin = 8 + struct.unpack("<Q", content[:8])[0]
    for place in range(begin, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(ModelFileError, match="has changed since it was written"):
            read_tensors(path, version=VERSION)


def test_the_digest_is_over_header_and_tensors(tmp_path):
    path = tmp_path / "m"
    write_tensors(path, {"b": torch.arange(3), "a": torch.tensor(1.5)}, {"version": VERSION, "text": "é"})
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[HEADER])
    given = header.pop("sha256")
    digest = hashlib.sha256(b'{"text": "\\u00e9", "version": 3}')
    digest.update(b"a float32 ()" + struct.pack("<f", 1.5) + b"b int64 (3,)" + struct.pack("<3q", 0, 1, 2))
    assert given == digest.hexdigest()


def test_a_file_without_a_digest_is_told(tmp_path):
    path = tmp_path / "m"
    save_file({"a": torch.zeros(2)}, path, {HEADER: json.dumps({"version": VERSION})})
    with pytest.raises(ModelFileError, match="has no digest"):
        read_tensors(path, version=VERSION)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_header_with_what_is_no_number_is_not_written(tmp_path, number):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_tensors(tmp_path / "m", {}, {"version": VERSION, "loss": [number]})
    assert list(tmp_path.iterdir()) == []
