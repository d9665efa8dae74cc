"""Small random models and the trained family as bundles, and merged checkpoints to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from onebitfmt.verbs.convert import convert
from onebitfmt.verbs.plan import ConvertOptions

FAMILY = Path(__file__).resolve().parents[1] / "data" / "family"
PRESETS = {"chat": "chat", "math": "math", "code": "code"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A base and bundles of its experts, by name; `experts` are the full checkpoints."""

    base: Path
    experts: Mapping[str, Path]
    bundles: Mapping[str, Path]


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The trained family, with the paper's positions."""
    root = tmp_path_factory.mktemp("family")
    experts = {name: FAMILY / name for name in PRESETS}
    return _bundled(root, FAMILY / "base", experts, PRESETS)


@pytest.fixture(scope="session")
def random_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    """Makes a base and two experts of an architecture, random and small; made once each."""
    made: dict[str, Family] = {}

    def make(kind: str) -> Family:
        if kind not in made:
            made[kind] = _random(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return make


def _random(root: Path, kind: str) -> Family:
    config = {"llama": _llama, "gpt2": _gpt2, "bert": _bert}[kind]()
    model: Any = getattr(transformers, config.architectures[0])
    torch.manual_seed(3)
    base = model(config).to(torch.bfloat16)
    base.save_pretrained(root / "base")
    experts = {}
    for seed, name in enumerate(("a", "b")):
        generator = torch.Generator().manual_seed(seed)
        tuned = model(config).to(torch.bfloat16)
        tuned.load_state_dict(base.state_dict())
        with torch.no_grad():
            for parameter in tuned.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.02 * noise.to(parameter.dtype))
        tuned.save_pretrained(root / name)
        experts[name] = root / name
    return _bundled(root, root / "base", experts, {"a": "linear", "b": "math"})


def _bundled(
    root: Path, base: Path, experts: Mapping[str, Path], presets: Mapping[str, str]
) -> Family:
    bundles = {}
    for name, folder in experts.items():
        bundles[name] = root / f"{name}.obd"
        convert(base, folder, bundles[name], ConvertOptions(preset=presets[name]))
    return Family(base=base, experts=experts, bundles=bundles)


def _llama() -> Any:
    return transformers.LlamaConfig(
        architectures=["LlamaForCausalLM"], vocab_size=96, hidden_size=64, intermediate_size=96,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, bos_token_id=None,
        eos_token_id=1, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip


def _gpt2() -> Any:
    return transformers.GPT2Config(
        architectures=["GPT2LMHeadModel"], vocab_size=96, n_embd=64, n_layer=2, n_head=4,
        n_positions=64, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip


def _bert() -> Any:
    return transformers.BertConfig(
        architectures=["BertForMaskedLM"], vocab_size=96, hidden_size=64, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=96, max_position_embeddings=64,
    )  # fmt: skip
