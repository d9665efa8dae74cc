"""Switching experts against loading full checkpoints: `make bench-switch`.

A random Llama in BF16 and two experts with one-bit linear layers. Measured in turns, in one
process: loading a full fine-tuned checkpoint from the page cache with safetensors into tensors of
its own, and having the routed model of the other expert ready from packed bits.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from onebitfmt import ConvertOptions, SignOptions, convert
from onebitfmt.collection import Collection
from onebitfmt.loader.model import RoutedModel
from onebitfmt.loader.weights import RoutedWeights
from onebitfmt.merge.recipe import Recipe

ROUNDS: Final = 5
EXPERTS: Final = ("a", "b")
PROMPT: Final = torch.arange(8)[None]


def make_models(folder: Path) -> None:
    """A base of about 0.4 GB and two fine-tunes whose linear layers alone differ."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=16, num_attention_heads=16,
        num_key_value_heads=8, vocab_size=8192, dtype="bfloat16",
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base")
    base = load_file(folder / "base" / "model.safetensors")
    for seed, name in enumerate(EXPERTS, 1):
        torch.manual_seed(seed)
        tuned = {
            k: (v.float() + 0.002 * torch.randn(v.shape)).bfloat16() if "proj" in k else v
            for k, v in base.items()
        }
        (folder / name).mkdir()
        config.save_pretrained(folder / name)
        save_file(tuned, folder / name / "model.safetensors", metadata={"format": "pt"})


def in_turns(paths: dict[str, Callable[[str], object]]) -> dict[str, float]:
    """Median seconds of each way, every round switching to the other expert."""
    times: dict[str, list[float]] = {label: [] for label in paths}
    for k in range(2 + ROUNDS):
        for label, work in paths.items():
            start = time.perf_counter()
            work(EXPERTS[k % 2])
            if k >= 2:  # the first turn of each expert checks digests and compiles
                times[label].append(time.perf_counter() - start)
    return {label: float(np.median(values)) for label, values in times.items()}


def load_full(folder: Path) -> Callable[[str], object]:
    """Load a full checkpoint into memory of its own, as a model would."""

    def load(expert: str) -> object:
        mapped = load_file(folder / expert / "model.safetensors")
        return {name: tensor.clone() for name, tensor in mapped.items()}

    return load


def switch(weights: RoutedWeights) -> Callable[[str], object]:
    """Have every tensor of an expert's model ready."""

    def run(expert: str) -> object:
        weights.activate(expert)
        weights.materialize()
        return weights

    return run


def first_token(model: RoutedModel, *, eager: bool) -> Callable[[str], object]:
    """Switch and run one forward pass, rebuilding layers as they run or all of them before."""

    def run(expert: str) -> object:
        model.activate(expert)
        if eager:
            model.load()
        with torch.inference_mode():
            return model.model(input_ids=PROMPT)

    return run


def main() -> None:
    """Print the figures."""
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder)
        full = (folder / "a" / "model.safetensors").stat().st_size
        ways: dict[str, Callable[[str], object]] = {"load the full checkpoint": load_full(folder)}
        for scale in ("matrix", "rank1"):
            bundles = {e: folder / f"{e}-{scale}.obd" for e in EXPERTS}
            for expert, path in bundles.items():
                options = ConvertOptions(preset="linear", sign=SignOptions(scale=scale))
                convert(folder / "base", folder / expert, path, options)
            size = sum(f.stat().st_size for f in bundles["a"].glob("*.safetensors"))
            print(f"{scale}: {size / 1e6:.1f} MB packed an expert, full {full / 1e6:.0f} MB")
            for method in ("select", "onebit_merging"):
                weights = RoutedWeights(folder / "base", bundles, Recipe(method=method))
                ways[f"switch, {method}, {scale}"] = switch(weights)
        found = in_turns(ways)
        reference = found["load the full checkpoint"]
        for label, seconds in found.items():
            print(f"{label:34} {seconds:6.3f} s  {reference / seconds:5.2f} x")
        tokens(folder)


def tokens(folder: Path) -> None:
    """First-token time after a switch, layers rebuilt lazily and eagerly."""
    bundles = {e: folder / f"{e}-rank1.obd" for e in EXPERTS}
    Collection.create(folder / "all", folder / "base", bundles, recipe=Recipe())
    # A model each: what one rebuilt, the other would find ready.
    models = [RoutedModel.from_pretrained(folder / "all", base=folder / "base") for _ in range(2)]
    ways = {
        "lazy": first_token(models[0], eager=False),
        "eager": first_token(models[1], eager=True),
    }
    for label, seconds in in_turns(ways).items():
        print(f"first token after a switch, {label}: {seconds:.3f} s")


if __name__ == "__main__":
    main()
