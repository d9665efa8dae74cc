from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from torch import nn

from onebitfmt.errors import MissingDependencyError, UsageError
from onebitfmt.loader import skeleton
from onebitfmt.loader.skeleton import build, library, units

if TYPE_CHECKING:
    from tests.loader.conftest import Family

CPU = torch.device("cpu")


def config_of(family: Family) -> Any:
    return transformers.AutoConfig.from_pretrained(family.base)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_buffers_are_right_and_matrices_take_no_memory(
    random_family: Callable[[str], Family], kind: str
) -> None:
    family = random_family(kind)
    model = build(config_of(family), torch.bfloat16, CPU)
    want = type(model).from_pretrained(family.base)
    buffers = dict(want.named_buffers())
    assert dict(model.named_buffers()).keys() == buffers.keys()
    assert bool(buffers) == (kind != "gpt2")  # its causal mask is no buffer any more
    for name, buffer in model.named_buffers():
        assert buffer.device == CPU
        assert buffer.dtype == buffers[name].dtype
        assert torch.equal(buffer, buffers[name])
    assert all(p.is_meta for p in model.parameters() if p.dim() == 2)
    assert not model.training


def test_building_takes_no_random_numbers(random_family: Callable[[str], Family]) -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    build(config_of(random_family("gpt2")), None, CPU)
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_every_parameter_is_in_one_unit(random_family: Callable[[str], Family], kind: str) -> None:
    model = build(config_of(random_family(kind)), None, CPU)
    names = set(model.state_dict())
    found = units(model, names)
    slots = [(id(s.module), s.name) for u in found for s in u.slots if not s.buffer]
    assert len(slots) == len(set(slots))
    assert len(slots) == len(list(model.named_parameters(remove_duplicate=False)))
    kinds = [u.layer for u in found]
    assert kinds == sorted(kinds)
    config = model.config
    assert sum(kinds) == config.num_hidden_layers
    assert {s.source for u in found for s in u.slots} <= names


def test_tied_weights_have_one_source(random_family: Callable[[str], Family]) -> None:
    model = build(config_of(random_family("llama")), None, CPU)
    names = set(model.state_dict()) - {"lm_head.weight"}
    sources = {id(s.module): s.source for u in units(model, names) for s in u.slots}
    assert sources[id(model.lm_head)] == "model.embed_tokens.weight"


def test_prefixes_and_old_names_are_found(random_family: Callable[[str], Family]) -> None:
    config = config_of(random_family("bert"))
    config.architectures = ["BertModel"]
    model = build(config, None, CPU)
    old = {f"bert.{n}" for n in model.state_dict()}
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma") for n in old}
    found = {s.source for u in units(model, old) for s in u.slots}
    assert found <= old
    assert "bert.embeddings.LayerNorm.gamma" in found


def test_a_parameter_without_a_tensor_is_named(random_family: Callable[[str], Family]) -> None:
    model = build(config_of(random_family("gpt2")), None, CPU)
    names = set(model.state_dict()) - {"transformer.h.1.attn.c_attn.weight"}
    with pytest.raises(UsageError, match=r"no tensor for transformer\.h\.1\.attn\.c_attn\.weight"):
        units(model, names)


def test_an_unknown_architecture_is_named(random_family: Callable[[str], Family]) -> None:
    config = config_of(random_family("gpt2"))
    config.architectures = ["WonderModel"]
    with pytest.raises(UsageError, match="WonderModel"):
        build(config, None, CPU)
    config.architectures = None
    with pytest.raises(UsageError, match="gpt2"):
        build(config, None, CPU)


def test_buffers_made_from_nothing_are_built_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(nn.Module):
        base_model_prefix = ""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.register_buffer("table", torch.empty(2, 2).fill_(7.0), persistent=False)

        @classmethod
        def _from_config(cls, _: Any) -> Odd:
            return cls()

        def tie_weights(self) -> None:
            """Nothing is."""

    monkeypatch.setattr(skeleton, "_model_class", lambda _: Odd)
    model = build(transformers.GPT2Config(), None, CPU)
    assert torch.equal(model.table, torch.full((2, 2), 7.0))


def test_without_transformers_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skeleton, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"onebitfmt\[transformers\]"):
        library()
