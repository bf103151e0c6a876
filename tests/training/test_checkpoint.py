"""Model files and checkpoints: round trips, failed writes, and rejection of damaged files."""

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
from error_matching import raises
from safetensors import safe_open
from safetensors.torch import save_file

from thaw.errors import ModelFileError, ThawError
from thaw.training.checkpoint import HEADER, read_tensors, write_tensors

VERSION = 3
LIMIT_BYTES = 4096


def a_file(path: Path, fill: float = 1.0, count: int = 8) -> bytes:
    write_tensors(path, {"a": torch.full((count, 3), fill), "b": torch.arange(5)}, {"version": VERSION, "fill": fill})
    return path.read_bytes()


def test_tensors_of_every_kind_round_trip(tmp_path):
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


def test_header_round_trip(tmp_path):
    header = {
        "version": VERSION,
        "classes": ["Gänseblümchen", "大", 'quo"te\n'],
        "nested": {"numbers": [1, 2.5, -1e-30, 0.1], "none": None, "yes": True},
    }
    write_tensors(tmp_path / "m", {}, header)
    assert read_tensors(tmp_path / "m", version=VERSION) == ({}, header)


def test_read_content_does_not_keep_the_file_open(tmp_path):
    path = tmp_path / "m"
    a_file(path, fill=1.0)
    tensors, _ = read_tensors(path, version=VERSION)
    a_file(path, fill=2.0)
    assert tensors["a"].eq(1.0).all()


def test_write_leaves_one_file(tmp_path):
    a_file(tmp_path / "m", fill=1.0)
    a_file(tmp_path / "m", fill=2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert read_tensors(tmp_path / "m", version=VERSION)[1]["fill"] == 2.0


def full_disk(*_args) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("is_there", [True, False])
def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch, where, is_there):
    path = tmp_path / "m"
    old = a_file(path) if is_there else None
    if where == "fsync":
        monkeypatch.setattr(os, "fsync", full_disk)
    else:
        monkeypatch.setattr(Path, "replace", full_disk)
    with raises("run-write", "No space left") as caught:
        a_file(path, fill=2.0)
    assert str(path) in str(caught.value)
    assert "out=" in str(caught.value)
    assert list(tmp_path.iterdir()) == ([path] if is_there else [])
    assert not is_there or path.read_bytes() == old


@contextlib.contextmanager
def files_of_at_most(limit_bytes: int):
    """Limit the size of files, so that a write is cut off as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_interrupted_write_leaves_the_old_file(tmp_path):
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


def test_missing_folder_is_reported(tmp_path):
    with raises("run-write", "No such file"):
        a_file(tmp_path / "nowhere" / "m")


@pytest.mark.parametrize("eighths", range(8))
def test_truncated_file_is_rejected(tmp_path, eighths):
    path = tmp_path / "m"
    content = a_file(path, count=200)
    path.write_bytes(content[: len(content) * eighths // 8])
    with raises("model-file-damaged") as caught:
        read_tensors(path, version=VERSION)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("lost", [1, 3, 4])
def test_missing_last_bytes_are_detected(tmp_path, lost):
    path = tmp_path / "m"
    path.write_bytes(a_file(path)[:-lost])
    with raises("model-file-damaged"):
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
def test_rejects_garbage(tmp_path, name):
    path = tmp_path / "m"
    path.write_bytes(GARBAGE[name])
    with raises("model-file-damaged"):
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
def test_rejects_a_file_with_another_header(tmp_path, metadata):
    path = tmp_path / "m"
    save_file({"a": torch.zeros(2)}, path, metadata)
    with raises("model-file-damaged"):
        read_tensors(path, version=VERSION)


@pytest.mark.parametrize("header", [{"version": 4}, {"version": "3"}, {"version": None}, {"version": True}, {}])
def test_rejects_another_version(tmp_path, header):
    path = tmp_path / "m"
    save_file({"a": torch.zeros(2)}, path, {HEADER: json.dumps(header)})
    with raises("model-file-version", "version 3"):
        read_tensors(path, version=VERSION)


def test_missing_file_and_folder_are_reported(tmp_path):
    with raises("model-file-missing", "nowhere"):
        read_tensors(tmp_path / "nowhere", version=VERSION)
    with pytest.raises(ModelFileError):
        read_tensors(tmp_path, version=VERSION)


def test_damaged_header_raises_only_the_documented_error(tmp_path):
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
            # Only white space of the container may change without effect.
            assert found == whole, (place, change)


def contents_of(path: Path) -> tuple[dict, dict]:
    tensors, header = read_tensors(path, version=VERSION)
    return {name: (tensor.dtype, tensor.shape, tensor.numpy().tobytes()) for name, tensor in tensors.items()}, header


def test_changed_bit_of_the_tensors_is_detected(tmp_path):
    path = tmp_path / "m"
    content = a_file(path)
    begin = 8 + struct.unpack("<Q", content[:8])[0]
    for place in range(begin, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with raises("model-file-digest"):
            read_tensors(path, version=VERSION)


def test_digest_covers_header_and_tensors(tmp_path):
    path = tmp_path / "m"
    write_tensors(path, {"b": torch.arange(3), "a": torch.tensor(1.5)}, {"version": VERSION, "text": "é"})
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[HEADER])
    given = header.pop("sha256")
    digest = hashlib.sha256(b'{"text": "\\u00e9", "version": 3}')
    digest.update(b"a float32 ()" + struct.pack("<f", 1.5) + b"b int64 (3,)" + struct.pack("<3q", 0, 1, 2))
    assert given == digest.hexdigest()


def test_missing_digest_is_reported(tmp_path):
    path = tmp_path / "m"
    save_file({"a": torch.zeros(2)}, path, {HEADER: json.dumps({"version": VERSION})})
    with raises("model-file-digest"):
        read_tensors(path, version=VERSION)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_header_with_nan_is_not_written(tmp_path, number):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_tensors(tmp_path / "m", {}, {"version": VERSION, "loss": [number]})
    assert list(tmp_path.iterdir()) == []
