"""Compare merges with mergekit 0.1.5, bit for bit, on a small float32 family.

Installs mergekit beside this environment (in `.peers`), runs it on a tiny Llama and three
fine-tunes of it, compares every tensor with `onebitfmt.merge` and writes inputs, recipes and
mergekit's results to `tests/data/peers`, where a test that installs nothing compares again.

Two things are mergekit's alone. It trims with an unstable sort, so that among equal magnitudes
chance decides: the family has no two equal ones in a tensor. Its DARE masks come from one global
generator: it is given ours instead, and does not rescale, since its factor depends on the order in
which the machine sums in single precision.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.merge.engine import Merger
from onebitfmt.merge.experts import ExpertSource
from onebitfmt.merge.masks import keep_mask, mask_key
from onebitfmt.merge.recipe import Recipe, dump_recipe

Array = NDArray[Any]

ROOT: Final = Path(__file__).resolve().parents[1]
DATA: Final = ROOT / "tests" / "data" / "peers"
EXPERTS: Final = ("a", "b", "c")
PACKAGES: Final = (
    "mergekit==0.1.5", "pydantic==2.10.6", "pydantic_core==2.27.2", "annotated-types",
    "immutables", "click", "accelerate", "scipy", "peft==0.21.2", "psutil", "sentencepiece",
)  # fmt: skip
CONFIG: Final = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
UNEQUAL: Final = {"a": 1.0, "b": 0.7, "c": 0.3}
RECIPES: Final[Mapping[str, Recipe]] = {
    "task_arithmetic": Recipe(method="task_arithmetic", weights=UNEQUAL),
    "task_arithmetic_mean": Recipe(
        method="task_arithmetic", normalize=True, lambda_onebit=0.7, lambda_dense=0.7
    ),
    "ties": Recipe(method="ties", preset="mergekit", density=0.5, weights=UNEQUAL),
    "ties_equal": Recipe(method="ties", preset="mergekit", lambda_onebit=0.8, lambda_dense=0.8),
    "ties_sum": Recipe(method="ties", preset="mergekit", density=0.3, normalize=False),
    "dare_linear": Recipe(
        method="dare_linear", preset="mergekit", density=0.5, rescale=False, seed=3
    ),
    "dare_ties": Recipe(
        method="dare_ties", preset="mergekit", density=0.4, rescale=False, weights=UNEQUAL
    ),
}

# What mergekit's Python runs: its command, with DARE's coin tosses looked up by the task vector
# they are for.
RUNNER: Final = """
import hashlib, sys
import numpy as np, torch
from mergekit import sparsify
from mergekit.scripts.run_yaml import main
masks, own, toss, current = np.load(sys.argv.pop(1)), sparsify.bernoulli, torch.bernoulli, []
def bernoulli(tensor, *args, **kwargs):
    current[:] = [hashlib.sha256(tensor.numpy().tobytes()).hexdigest()]
    return own(tensor, *args, **kwargs)
def tossed(chances):
    return torch.from_numpy(masks[current.pop()].astype(np.float32)).reshape(chances.shape)
sparsify.bernoulli, torch.bernoulli = bernoulli, tossed
main()
"""


def main() -> None:
    """Run mergekit on every recipe, compare, and write the committed results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, help="an interpreter that has mergekit 0.1.5")
    python = parser.parse_args().python or install(ROOT / ".peers")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_family(work)
        unlike = 0
        for name, recipe in RECIPES.items():
            run_mergekit(python, work, name, recipe)
            different, tensors = compare(work, work / name, recipe)
            unlike += different
            print(f"{name:22} {different} of {tensors} tensors differ from mergekit's")
        keep(work)
    sys.exit(1 if unlike else 0)


def install(folder: Path) -> Path:
    """A virtual environment with mergekit, which borrows torch from this one."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        [packages] = (folder / "lib").glob("python*/site-packages")
        (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES]
        subprocess.run(command, check=True)
    return python


def write_family(folder: Path) -> None:
    """A base and three fine-tunes in float32, no two magnitudes of a task vector equal."""
    rng = np.random.default_rng(2502)
    base = {name: draw(rng, shape, 0.02) for name, shape in shapes().items()}
    write_model(folder / "base", base)
    for expert in EXPERTS:
        tuned = {name: value + draw(rng, value.shape, 0.002) for name, value in base.items()}
        for name, value in tuned.items():
            sizes = np.abs(value - base[name])
            if np.unique(sizes).size != sizes.size:
                sys.exit(f"{expert}: {name} has equal magnitudes; take another seed")
        write_model(folder / expert, tuned)


def draw(rng: np.random.Generator, shape: Sequence[int], scale: float) -> Array:
    """Normal float32 values."""
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of the tiny Llama."""
    layer = {
        "self_attn.q_proj": (16, 16), "self_attn.k_proj": (16, 16), "self_attn.v_proj": (16, 16),
        "self_attn.o_proj": (16, 16), "mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16),
        "mlp.down_proj": (16, 24), "input_layernorm": (16,), "post_attention_layernorm": (16,),
    }  # fmt: skip
    outer = {"model.embed_tokens": (32, 16), "model.norm": (16,), "lm_head": (32, 16)}
    named = {f"model.layers.0.{name}": shape for name, shape in layer.items()} | outer
    return {f"{name}.weight": shape for name, shape in named.items()}


def write_model(folder: Path, tensors: Mapping[str, Array]) -> None:
    """A checkpoint folder that mergekit reads."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(save(dict(tensors), {"format": "pt"}))
    (folder / "config.json").write_text(json.dumps(CONFIG))


def run_mergekit(python: Path, work: Path, name: str, recipe: Recipe) -> None:
    """Write mergekit's configuration for a recipe, and its result to `work / name`."""
    config, masks, runner = (work / f"{name}{end}" for end in (".mergekit", ".npz", ".py"))
    config.write_text(yaml.safe_dump(mergekit_config(work, recipe)))
    np.savez(masks, allow_pickle=False, **dare_masks(work, recipe))
    runner.write_text(RUNNER)
    options = ["--no-copy-tokenizer", "--no-write-model-card", "--num-threads", "1"]
    done = subprocess.run(
        [python, runner, masks, config, work / name, *options],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"mergekit failed on {name}:\n{done.stderr}")


def mergekit_config(work: Path, recipe: Recipe) -> dict[str, Any]:
    """The recipe as mergekit's configuration."""
    models = []
    for expert in EXPERTS:
        parameters = {"weight": recipe.weights.get(expert, 1.0)}
        if recipe.method != "task_arithmetic":
            parameters["density"] = recipe.density
        models.append({"model": str(work / expert), "parameters": parameters})
    own: dict[str, Any] = {"lambda": recipe.lambda_of("other", onebit=False)}
    if recipe.normalize is not None:
        own["normalize"] = recipe.normalize
    if recipe.rescale is not None:
        own["rescale"] = recipe.rescale
    return {
        "merge_method": recipe.method,
        "base_model": str(work / "base"),
        "models": models,
        "parameters": own,
        "dtype": "float32",
    }


def dare_masks(work: Path, recipe: Recipe) -> dict[str, Array]:
    """Our masks by the SHA-256 of the task vector they are for."""
    base = load_file(work / "base" / "model.safetensors")
    masks = {}
    for expert in EXPERTS:
        for name, value in load_file(work / expert / "model.safetensors").items():
            vector = value - base[name]
            key = mask_key(recipe.seed, expert, name)
            mask = keep_mask(key, 0, vector.size, recipe.density)
            masks[hashlib.sha256(vector.tobytes()).hexdigest()] = mask
    return masks


def compare(work: Path, merged: Path, recipe: Recipe) -> tuple[int, int]:
    """(tensors whose bits differ from ours, all tensors)."""
    experts = [ExpertSource.open(work / name) for name in EXPERTS]
    merger = Merger(Checkpoint.open(work / "base"), experts, recipe)
    theirs = Checkpoint.open(merged)
    if set(theirs) != set(merger.names):
        sys.exit(f"{merged.name}: other tensors than ours")
    different = [n for n in theirs if not np.array_equal(merger.tensor(n).bits, theirs.bits(n))]
    return len(different), len(merger.names)


def keep(work: Path) -> None:
    """Commit what the test needs: inputs, recipes and results, each one file."""
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    for name in ("base", *EXPERTS):
        shutil.copyfile(work / name / "model.safetensors", DATA / f"{name}.safetensors")
    for name, recipe in RECIPES.items():
        (DATA / f"{name}.yaml").write_text(dump_recipe(recipe))
        [file] = (work / name).glob("model*.safetensors")
        (DATA / f"{name}.merged.safetensors").write_bytes(save(load_file(file)))


if __name__ == "__main__":
    main()
