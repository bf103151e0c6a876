"""The export folder: complete or marked as incomplete, and foreign files are kept."""

from __future__ import annotations

import hashlib
import json

import pytest
from command_line import reseal
from error_matching import raises

from thaw.errors import RunError
from thaw.export import folder as export_folder
from thaw.export.folder import MANIFEST, read_format, remove_exports, write_format

FILES = {"model-float.onnx": b"float", "model-int8.onnx": b"int8", "example.py": b"print()"}
BOTH = ("float", "int8")


def test_round_trip(tmp_path):
    out = tmp_path / "new" / "out"
    assert read_format(out, "onnx") is None
    write_format(out, "onnx", BOTH, FILES)
    found = read_format(out, "onnx")
    assert (found.format, found.precisions, found.changed) == ("onnx", BOTH, ())
    assert found.files == FILES
    assert list(found.files) == list(FILES)
    described = found.as_dict()["files"]["example.py"]
    assert described == {"bytes": 7, "sha256": hashlib.sha256(b"print()").hexdigest()}
    assert sorted(path.name for path in (out / "onnx").iterdir()) == sorted([*FILES, MANIFEST])
    assert read_format(out, "litert") is None


@pytest.mark.parametrize("fails_at", range(5))
def test_interrupted_export_never_looks_complete(tmp_path, monkeypatch, fails_at):
    """Manifest, three files, manifest again: after any failure, the folder does not count as an export."""
    for earlier in (False, True):
        out = tmp_path / str(earlier)
        if earlier:
            write_format(out, "onnx", BOTH, dict.fromkeys(FILES, b"of an earlier export"))
        written = 0
        write = export_folder.write_atomically

        def stop(path, content, write=write):
            nonlocal written
            if written == fails_at:
                raise RunError("the disk is full")
            written += 1
            write(path, content)

        monkeypatch.setattr(export_folder, "write_atomically", stop)
        with pytest.raises(RunError):
            write_format(out, "onnx", BOTH, FILES)
        monkeypatch.undo()
        if fails_at:
            with raises("model-file-export", out):
                read_format(out, "onnx")
        elif earlier:
            # Nothing has changed yet.
            assert set(read_format(out, "onnx").files.values()) == {b"of an earlier export"}
        else:
            assert read_format(out, "onnx") is None
        write_format(out, "onnx", BOTH, FILES)
        assert read_format(out, "onnx").files == FILES


def test_other_files_are_kept(tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "board.c").write_text("mine")
    write_format(tmp_path, "c", ("int8",), {"model.c": b"1", "old.c": b"2"})
    write_format(tmp_path, "c", ("int8",), {"model.c": b"3"})
    assert sorted(path.name for path in folder.iterdir()) == ["board.c", MANIFEST, "model.c"]
    assert read_format(tmp_path, "c").files == {"model.c": b"3"}
    remove_exports(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["c", "board.c"]
    (folder / "board.c").unlink()
    remove_exports(tmp_path)


def test_foreign_file_of_the_same_name_is_not_overwritten(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "main.c").write_text("mine")
    with raises("run-export", "main.c"):
        write_format(tmp_path, "c", ("int8",), {"model.c": b"1", "main.c": b"2"})
    assert (tmp_path / "c" / "main.c").read_text() == "mine"
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["main.c"]


def test_link_is_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "c").symlink_to(outside)
    with raises("run-export", tmp_path / "out" / "c"):
        write_format(tmp_path / "out", "c", ("int8",), {"model.c": b"1"})
    (outside / MANIFEST).write_text(json.dumps({"version": 1}))
    remove_exports(tmp_path / "out")
    assert [path.name for path in outside.iterdir()] == [MANIFEST]


def test_unwritable_folder_is_reported(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with raises("run", "out="):
        write_format(tmp_path / "file", "c", ("int8",), {"model.c": b"1"})


@pytest.mark.parametrize("name", ["../model.c", "/etc/model.c", "a/b", "", ".hidden", MANIFEST, "a\nb"])
def test_exporter_cannot_write_outside_the_folder(tmp_path, name):
    with pytest.raises(AssertionError):
        write_format(tmp_path, "c", ("int8",), {name: b""})
    assert list(tmp_path.iterdir()) == []


def test_changed_and_missing_files_are_reported(tmp_path):
    write_format(tmp_path, "onnx", BOTH, FILES)
    (tmp_path / "onnx" / "model-int8.onnx").write_bytes(b"int9")
    assert read_format(tmp_path, "onnx").changed == ("model-int8.onnx",)
    (tmp_path / "onnx" / "model-int8.onnx").unlink()
    with raises("model-file-export", "model-int8.onnx"):
        read_format(tmp_path, "onnx")


def _changed(**changes):
    return lambda content: {**content, **changes}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: json.dumps(content)[:-20],
        lambda content: "[" * 100_000,
        lambda content: "[]",
        lambda content: json.dumps({**content, "precisions": ["int8", "float"]}),
        lambda content: "\x00\xff",
        _changed(version=2),
        _changed(version=None),
        _changed(format="../c"),
        _changed(precisions="int8"),
        _changed(files=[]),
        _changed(files={"../../secret": {"bytes": 1, "sha256": "0" * 64}}),
        _changed(files={"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}),
        _changed(files={"export.json": {"bytes": 1, "sha256": "0" * 64}}),
        _changed(files={"model.c": {"bytes": True, "sha256": "0" * 64}}),
        _changed(files={"model.c": {"bytes": 1, "sha256": "0"}}),
        _changed(files={"model.c": None}),
    ],
)
def test_rejects_foreign_manifest(tmp_path, change):
    write_format(tmp_path, "c", ("int8",), {"model.c": b"1"})
    path = tmp_path / "c" / MANIFEST
    changed = change(json.loads(path.read_text()))
    if isinstance(changed, dict):
        reseal(path, changed)
    else:
        path.write_text(changed)
    with raises("model-file", MANIFEST):
        read_format(tmp_path, "c")
    with raises("run", "out="):
        write_format(tmp_path, "c", ("int8",), {"model.c": b"2"})
    remove_exports(tmp_path)
    assert (tmp_path / "c" / "model.c").read_bytes() == b"1"
