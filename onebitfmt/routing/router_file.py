"""The file of a router: weights as F32 tensors of a safetensors file, the rest as strict JSON.

One metadata key, `obd.router`, holds the canonical JSON of labels, feature specification and
metrics. Whatever a file from a stranger holds, reading it succeeds or raises `FormatError`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from onebitfmt.errors import FormatError, OutputError, UnsupportedError, UsageError
from onebitfmt.format.safetensors import Header, layout, read_header
from onebitfmt.format.strict_json import Cursor, canonical, parse
from onebitfmt.routing.names import MAX_EXPERTS, is_expert_name
from onebitfmt.routing.network import Layer
from onebitfmt.routing.spec import FeatureSpec, dump_spec, load_spec

Array = NDArray[Any]

KEY: Final = "obd.router"
FORMAT: Final = "obd-router"
VERSION: Final = "1.0"
MAX_FILE_BYTES: Final = 1 << 30
MAX_JSON_BYTES: Final = 1 << 20

_SPEC: Final = "OBD-ROUTER-SPEC"
_TENSORS: Final = "OBD-ROUTER-TENSORS"
_MAX_LAYERS: Final = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """What the file of a router holds; fields as in `Router`."""

    labels: tuple[str, ...]
    spec: FeatureSpec
    layers: tuple[Layer, ...]
    temperature: float
    metrics: Mapping[str, Any] = field(default_factory=dict)


# --- writing -------------------------------------------------------------------------------------


def save(path: Path, stored: Stored, *, overwrite: bool) -> None:
    """Write the file, whole or not at all.

    Raises `OutputError` where it exists or cannot be written, and `UsageError` for what `load`
    would refuse.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; pass --overwrite to replace it")
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file")
    data = _encode(stored)
    part = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with part.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        # The new file is held to the rules of reading before it takes the name.
        load(part)
        part.replace(path)
    except FormatError as e:
        raise UsageError(f"this router cannot be stored: {e.problem}") from None
    except OSError as e:
        raise OutputError(f"{path}: cannot be written ({e.strerror})") from None
    finally:
        part.unlink(missing_ok=True)


def _encode(stored: Stored) -> bytes:
    text = canonical(
        {
            "format": FORMAT,
            "version": VERSION,
            "labels": list(stored.labels),
            "features": dump_spec(stored.spec),
            "metrics": dict(stored.metrics),
        }
    ).decode()
    tensors = {"temperature": np.array([stored.temperature], "<f4")}
    for i, (weight, bias) in enumerate(stored.layers):
        tensors[f"layers.{i}.weight"] = weight.astype("<f4")
        tensors[f"layers.{i}.bias"] = bias.astype("<f4")
    spans = {name: ("F32", tuple(array.shape)) for name, array in tensors.items()}
    _, header = layout(spans, {KEY: text})
    return header + b"".join(array.tobytes() for array in tensors.values())


# --- reading -------------------------------------------------------------------------------------


def load(path: Path) -> Stored:
    """Read and check the file. Raises `FormatError`, `UnsupportedError` for a newer version."""
    where = str(path)
    if not path.is_file():
        raise FormatError("OBD-ROUTER-FILE", where, "no such file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise FormatError("OBD-ROUTER-FILE", where, f"larger than {MAX_FILE_BYTES} bytes")
    header = read_header(path)
    text = header.metadata.get(KEY, "").encode()
    if header.metadata.keys() != {KEY} or len(text) > MAX_JSON_BYTES:
        problem = f"__metadata__ has not the one key {KEY!r}, or too much of it; not a router"
        raise FormatError("OBD-ROUTER-FILE", where, problem)
    value = parse(text, where)
    cursor = Cursor(value=value, path=where)
    try:
        labels, spec, metrics = _load_description(cursor)
    except UnsupportedError:
        raise
    except FormatError as e:
        raise FormatError(_SPEC, e.where, e.problem) from None
    if canonical(value) != text:
        raise FormatError(_SPEC, where, "not in canonical form")
    layers, temperature = _load_tensors(path, header, spec.dimension, len(labels))
    return Stored(labels=labels, spec=spec, layers=layers, temperature=temperature, metrics=metrics)


def _load_description(cursor: Cursor) -> tuple[tuple[str, ...], FeatureSpec, Mapping[str, Any]]:
    head = dict(cursor.entries())
    if "format" not in head or head["format"].string() != FORMAT:
        cursor.fail(_SPEC, "this is not a router")
    version = head["version"].string() if "version" in head else ""
    if version.partition(".")[0] != VERSION.partition(".")[0]:
        problem = f"router version {version!r} needs another reader; update onebitfmt"
        raise UnsupportedError("OBD-ROUTER-VERSION", cursor.path, problem)
    f = cursor.fields("format version labels features metrics")
    labels = tuple(c.string() for c in f["labels"].items())
    if not 2 <= len(labels) <= MAX_EXPERTS or len(set(labels)) != len(labels):
        f["labels"].fail(_SPEC, f"expected 2 to {MAX_EXPERTS} different labels")
    for label in labels:
        if not is_expert_name(label):
            f["labels"].fail(_SPEC, f"{label!r} is not a name of an expert")
    return labels, load_spec(f["features"]), {k: c.value for k, c in f["metrics"].entries()}


def _load_tensors(
    path: Path, header: Header, dimension: int, labels: int
) -> tuple[tuple[Layer, ...], float]:
    count = sum(name.endswith(".weight") for name in header.spans)
    names = {f"layers.{i}.{part}" for i in range(count) for part in ("weight", "bias")}
    if not 1 <= count <= _MAX_LAYERS or header.spans.keys() != names | {"temperature"}:
        _refuse(path, f"tensors are not temperature and those of 1 to {_MAX_LAYERS} layers")
    if any(span.dtype != "F32" for span in header.spans.values()):
        _refuse(path, "a tensor is not F32")
    data = path.read_bytes()
    tensors: dict[str, Array] = {
        name: np.frombuffer(data, "<f4", (span.end - span.begin) // 4, span.begin)
        .reshape(span.shape)
        .astype(np.float32)
        for name, span in header.spans.items()
    }
    layers = tuple((tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"])
                   for i in range(count))  # fmt: skip
    width = dimension
    for weight, bias in layers:
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            _refuse(path, "the shapes of the layers do not follow from each other")
        width = weight.shape[0]
    if width != labels:
        _refuse(path, f"the last layer has {width} outputs for {labels} labels")
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        _refuse(path, "a number is not finite")
    if tensors["temperature"].shape != (1,):
        _refuse(path, "the temperature is not one number")
    temperature = float(tensors["temperature"][0])
    if not (temperature > 0 and isfinite(1 / temperature)):
        _refuse(path, "the temperature is not positive")
    return layers, temperature


def _refuse(path: Path, problem: str) -> NoReturn:
    raise FormatError(_TENSORS, str(path), problem)
