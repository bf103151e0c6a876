"""Damage to bytes, to JSON trees (which stay valid JSON), and to safetensors; with or without a matching digest."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

SEAL = "sha256"
TYPES = {"F32": np.float32, "F64": np.float64, "I8": np.int8, "I32": np.int32, "I64": np.int64, "BOOL": np.bool_}

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2**31, 2**53 + 1, 2**63, -(2**63), 10**30, 1.5, -0.0, 1e-320, 3e38, 1e308, 1e-45),
    *("", "x", "../x", "\0", "\x1b[2J", "\ud800", "line\nline", "=1+1", "y" * 5000, "*/", "\u202e", "0", "nan"),
    *([], [[]], {}, {"a": 1}, [None], ["x"] * 3, [True], [0] * 1000, {"x" * 3000: 1}),
)
ODD_FLOATS = (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 0.0, 1e30)


def bytes_of(data: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Damaged bytes, and a description of the damage."""
    content, size = bytearray(data), max(1, len(data))
    at = chance.randrange(size)
    length = min(1 << chance.randrange(1, 12), size)
    match chance.choices(range(9), (8, 2, 3, 1, 2, 1, 1, 1, 1))[0]:
        case 0:
            content[at] ^= 1 << chance.randrange(8)
            what = f"a bit of byte {at}"
        case 1:
            for _ in range(8):
                content[chance.randrange(size)] ^= 1 << chance.randrange(8)
            what = "8 bits"
        case 2:
            del content[at:]
            what = f"cut at {at}"
        case 3:
            content += chance.randbytes(length)
            what = f"{length} bytes more"
        case 4:
            other = chance.randrange(size)
            content[at : at + length] = data[other : other + length]
            what = f"{length} bytes at {at} from {other}"
        case 5:
            content[at : at + length] = bytes(length)
            what = f"{length} zeros at {at}"
        case 6:
            del content[at : at + length]
            what = f"{length} bytes less at {at}"
        case 7:
            content[at:at] = chance.randbytes(length)
            what = f"{length} bytes more at {at}"
        case _:
            content = bytearray(chance.randbytes(length))
            what = f"{length} bytes of noise"
    return bytes(content), what


def tree_of(content: Any, chance: random.Random) -> str:
    """Change one place of a JSON tree and return a description."""
    node, path = content, ""
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = chance.choice(keys)
        path += f".{key}"[:60]
        below = node[key]
        if not isinstance(below, dict | list) or not below or chance.random() < 0.12:
            break
        node = below
    value: Any = chance.choice(ODD_VALUES)
    match chance.choices(range(5), (6, 2, 4, 1, 1))[0]:
        case 1:
            del node[key]
            return f"{path} removed"
        case 2:
            value = _nearby(below, chance)
            node[key] = value
        case 3 if isinstance(node, dict):
            node[f"{key}more"] = value
            return f"{path}more added: {value!r:.60}"
        case 4 if isinstance(node, list):
            node.insert(key, below)
            return f"{path} twice"
        case _:
            node[key] = value
    return f"{path} = {value!r:.60}"


def _nearby(value: Any, chance: random.Random) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return chance.choice((value + 1, value - 1, -value, value * 2, value * 1000, 0))
    if isinstance(value, float):
        return chance.choice((value * 1.0001, -value, value * 1e6, value / 1e6, 0.0, 1.0, 0.5))
    if isinstance(value, str):
        return chance.choice((value[:-1], value + "x", value.upper(), value * 2, value[::-1]))
    return chance.choice(([], {}, value * 2 if isinstance(value, list) else {**value, "x": value}))


def digest(content: dict[str, Any], parts: list[tuple[str, str, tuple[int, ...], bytes]] | None = None) -> str:
    """An independent implementation of the digest (docs/architecture.md)."""
    plain = {key: value for key, value in content.items() if key != SEAL}
    found = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name, dtype, shape, data in sorted(parts or []):
        found.update(f"{name} {dtype} {shape}".encode() + data)
    return found.hexdigest()


def document_of(data: bytes, chance: random.Random, *, forged: bool) -> tuple[bytes, str]:
    """A changed but valid JSON document; with `forged`, its digest matches."""
    content = json.loads(data)
    kept = content.pop(SEAL, None)
    what = tree_of(content, chance)
    if forged:
        kept = digest(content)
    return json.dumps({**content, SEAL: kept}).encode(), what


def tensors_of(data: bytes, chance: random.Random, key: str, *, forged: bool) -> tuple[bytes, str]:
    """A safetensors file with a changed thaw header or tensors; with `forged`, its digest matches."""
    size = struct.unpack("<Q", data[:8])[0]
    outer = json.loads(data[8 : 8 + size])
    header = json.loads(outer.pop("__metadata__")[key])
    kept = header.pop(SEAL, None)
    tensors = {
        name: np.frombuffer(data[8 + size :][slice(*entry["data_offsets"])], TYPES[entry["dtype"]])
        .reshape(entry["shape"])
        .copy()
        for name, entry in outer.items()
    }
    what = _tensor_of(tensors, chance) if chance.random() < 0.4 else tree_of(header, chance)
    if forged:
        parts = [(name, str(each.dtype), each.shape, each.tobytes()) for name, each in tensors.items()]
        kept = digest(header, parts)
    return _packed(tensors, {key: json.dumps({**header, SEAL: kept})}), what


def _tensor_of(tensors: dict[str, np.ndarray], chance: random.Random) -> str:
    """Change one tensor, or the set of tensors."""
    name = chance.choice(sorted(tensors))
    tensor = tensors[name]
    action: Callable[[], object]
    match chance.choices(range(6), (5, 3, 1, 1, 1, 1))[0]:
        case 0:
            value = chance.choice(ODD_FLOATS) if tensor.dtype.kind == "f" else chance.randrange(-128, 128)
            action = lambda: tensor.reshape(-1).__setitem__(chance.randrange(tensor.size), value)  # noqa: E731
            what = f"{name}: one number {value}"
        case 1:
            value = chance.choice(ODD_FLOATS) if tensor.dtype.kind == "f" else chance.randrange(-128, 128)
            action = lambda: tensor.fill(value)  # noqa: E731
            what = f"{name}: all {value}"
        case 2:
            action = lambda: tensors.pop(name)  # noqa: E731
            what = f"{name} removed"
        case 3:
            action = lambda: tensors.__setitem__(f"{name}x", tensors.pop(name))  # noqa: E731
            what = f"{name} renamed"
        case 4:
            action = lambda: tensors.__setitem__(name, tensor.reshape(-1))  # noqa: E731
            what = f"{name} flat"
        case _:
            action = lambda: tensors.__setitem__(name, np.concatenate([tensor.reshape(-1)] * 2))  # noqa: E731
            what = f"{name} twice as long"
    if tensor.size:
        with np.errstate(all="ignore"):
            action()
    return what


def _packed(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    names = {np.dtype(kind): name for name, kind in TYPES.items()}
    outer: dict[str, Any] = {"__metadata__": metadata}
    body = b""
    for name, tensor in tensors.items():
        data = tensor.tobytes()
        outer[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(outer).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def recipe_of(data: bytes, chance: random.Random) -> tuple[bytes, str]:
    """A changed but valid TOML recipe."""
    import tomllib

    import tomli_w

    tree = tomllib.loads(data.decode())
    what = tree_of(tree, chance)
    try:
        return tomli_w.dumps(tree).encode(), what
    except (TypeError, ValueError, UnicodeEncodeError):
        return bytes_of(data, chance)
