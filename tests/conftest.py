"""Small checkpoints, written and read back without the library."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import deserialize

from onebitfmt.verbs.convert import convert
from onebitfmt.verbs.plan import ConvertOptions
from tests.hubserver.fixtures import hub, known_xet, quick_retries  # noqa: F401

Bits = NDArray[Any]
Tensors = dict[str, tuple[str, Bits]]
Content = dict[str, tuple[str, tuple[int, ...], bytes]]

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """Makes checkpoints below `root`; a tensor is its dtype and its bit patterns."""

    root: Path

    @staticmethod
    def widen(dtype: str, bits: Bits) -> NDArray[Any]:
        """Values of float bit patterns: float32, or float64 of F64."""
        if dtype == "BF16":
            return (bits.astype(np.uint32) << 16).view(np.float32)
        values = bits.view(FLOATS[dtype])
        return values if dtype == "F64" else values.astype(np.float32)

    @staticmethod
    def narrow(dtype: str, values: NDArray[Any]) -> Bits:
        """Bit patterns of finite values, rounded to nearest even."""
        if dtype == "BF16":
            u = values.astype(np.float32).view(np.uint32)
            return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
        exact = values.astype(FLOATS[dtype])
        return exact.view(f"u{exact.itemsize}")

    def random(
        self, seed: int, shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16"
    ) -> Tensors:
        """Normal values of standard deviation 0.02."""
        rng = np.random.default_rng(seed)
        return {
            name: (dtype, self.narrow(dtype, rng.normal(0, 0.02, shape)))
            for name, shape in shapes.items()
        }

    def tuned(self, base: Tensors, seed: int, dtype: str | None = None) -> Tensors:
        """Every float tensor moved a little; `dtype` changes its type too."""
        rng = np.random.default_rng(seed)
        found: Tensors = {}
        for name, (own, bits) in base.items():
            found[name] = (own, bits)
            if own in FLOATS or own == "BF16":
                values = self.widen(own, bits) + rng.normal(0, 0.002, bits.shape)
                found[name] = (dtype or own, self.narrow(dtype or own, values))
        return found

    def llama(self, seed: int, dtype: str = "BF16", vocabulary: int = 100) -> Tensors:
        """Two layers, hidden size 64; `k_proj` and `v_proj` are too small to be one-bit."""
        layer = {
            "self_attn.q_proj": (64, 64),
            "self_attn.k_proj": (32, 64),
            "self_attn.v_proj": (32, 64),
            "self_attn.o_proj": (64, 64),
            "mlp.gate_proj": (96, 64),
            "mlp.up_proj": (96, 64),
            "mlp.down_proj": (64, 96),
            "input_layernorm": (64,),
            "post_attention_layernorm": (64,),
        }
        shapes: dict[str, tuple[int, ...]] = {
            f"model.layers.{i}.{part}.weight": shape
            for i in range(2)
            for part, shape in layer.items()
        }
        shapes["model.embed_tokens.weight"] = (vocabulary, 64)
        shapes["model.norm.weight"] = (64,)
        shapes["lm_head.weight"] = (vocabulary, 64)
        return self.random(seed, shapes, dtype)

    @staticmethod
    def write(path: Path, tensors: Tensors) -> Path:
        """One safetensors file, tensors in the order given and without any alignment."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        position = 0
        for name, (dtype, bits) in tensors.items():
            end = position + bits.nbytes
            offsets = [position, end]
            header[name] = {
                "dtype": dtype,
                "shape": list(bits.shape),
                "data_offsets": offsets,
            }
            position = end
        text = json.dumps(header).encode()
        data = b"".join(bits.tobytes() for _, bits in tensors.values())
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        return path

    def save(
        self,
        folder: str,
        tensors: Tensors,
        *,
        shards: Sequence[Sequence[str]] = (),
        files: Mapping[str, str] | None = None,
    ) -> Path:
        """A checkpoint folder; `shards` lists the names of each shard."""
        path = self.root / folder
        path.mkdir(parents=True)
        if shards:
            weight_map: dict[str, str] = {}
            for i, names in enumerate(shards, 1):
                file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
                self.write(path / file, {n: tensors[n] for n in names})
                weight_map |= dict.fromkeys(names, file)
            index = json.dumps({"weight_map": weight_map})
            (path / "model.safetensors.index.json").write_text(index)
        else:
            self.write(path / "model.safetensors", tensors)
        for name, text in (files or {}).items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(text)
        return path

    @staticmethod
    def content(tensors: Tensors) -> Content:
        """What `load` gives for a checkpoint of these tensors."""
        return {n: (d, tuple(b.shape), b.tobytes()) for n, (d, b) in tensors.items()}

    @staticmethod
    def load(folder: Path) -> Content:
        """Every tensor of a folder's safetensors files, read by the safetensors library."""
        found: Content = {}
        for file in sorted(folder.glob("*.safetensors")):
            for name, tensor in deserialize(file.read_bytes()):
                shape = tuple(tensor["shape"])
                found[name] = (tensor["dtype"], shape, bytes(tensor["data"]))
                assert len(found[name][2]) % max(prod(shape), 1) == 0
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A base model, an expert of it and its bundle of preset `linear`: for reading only."""

    base: Path
    expert: Path
    bundle: Path
    base_tensors: Tensors
    expert_tensors: Tensors


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(root=tmp_path)


@pytest.fixture(scope="session")
def models_at() -> Callable[[Path], Models]:
    """For fixtures of a wider scope, which bring a folder of their own."""
    return lambda root: Models(root=root)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    models = Models(root=tmp_path_factory.mktemp("pair"))
    base_tensors = models.llama(1)
    expert_tensors = models.tuned(base_tensors, 2)
    same = "model.norm.weight"
    expert_tensors[same] = base_tensors[same]
    base = models.save("base", base_tensors)
    files = {
        "config.json": '{"model_type": "llama"}',
        "tokenizer/vocab.txt": "a b",
        "README.md": "---\nlicense: apache-2.0\n---\n",
    }
    expert = models.save("expert", expert_tensors, files=files)
    bundle = models.root / "expert.obd"
    convert(base, expert, bundle, ConvertOptions(preset="linear"))
    return Pair(
        base=base,
        expert=expert,
        bundle=bundle,
        base_tensors=base_tensors,
        expert_tensors=expert_tensors,
    )
