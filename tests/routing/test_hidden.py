from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import BaseMismatchError, CheckpointError, MissingDependencyError
from onebitfmt.routing import hidden
from onebitfmt.routing.hidden import make_hidden, open_hidden

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPTS = ["47+38=", 'reverse("abcd") ->', "Q: What is the pet of Gunek? A:", "1"]


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


def one_by_one(network: Any, tokenizer: Any, prompts: list[str]) -> list[Any]:
    rows = []
    for prompt in prompts:
        with torch.no_grad():
            told = network(**tokenizer(prompt, return_tensors="pt", return_token_type_ids=False))
        rows.append(told.last_hidden_state[0].float().mean(dim=0).numpy())
    return rows


def small(folder: Path, base: Checkpoint, config: Any) -> Checkpoint:
    """A random model of another architecture with the family's tokenizer."""
    torch.manual_seed(1)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base.folder / name, folder / name)
    return Checkpoint.open(folder)


def test_features_are_the_mean_of_the_last_states(base: Checkpoint) -> None:
    features = make_hidden(base)
    assert (features.spec.kind, features.spec.dimension) == ("hidden", 128)
    network = transformers.AutoModelForCausalLM.from_pretrained(base.folder, dtype="auto").model
    tokenizer = transformers.AutoTokenizer.from_pretrained(base.folder)
    found = features(PROMPTS)
    assert found.dtype == np.float32
    expected = one_by_one(network, tokenizer, PROMPTS)
    # Padding changes the order of sums, and so the last bits of bfloat16.
    scale = np.abs(expected).mean()
    np.testing.assert_allclose(found, expected, atol=0.1 * scale)
    np.testing.assert_array_equal(found, features(PROMPTS))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_other_architectures_serve(kind: str, base: Checkpoint, tmp_path: Path) -> None:
    config = {
        "bert": lambda: transformers.BertConfig(
            vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=64,
        ),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=512, n_embd=32, n_layer=1, n_head=2, n_positions=64,
            bos_token_id=1, eos_token_id=1,
        ),
        "t5": lambda: transformers.T5Config(
            vocab_size=512, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2,
        ),
    }[kind]()  # fmt: skip
    own = small(tmp_path / kind, base, config)
    features = make_hidden(own)
    assert features.spec.dimension == 32
    network = transformers.AutoModel.from_pretrained(own.folder).eval()
    body = network.get_encoder() if kind == "t5" else network
    tokenizer = transformers.AutoTokenizer.from_pretrained(own.folder)
    expected = one_by_one(body, tokenizer, PROMPTS)
    np.testing.assert_allclose(features(PROMPTS), expected, atol=1e-4)


def test_a_prompt_without_tokens_is_zero_and_batches_do_not_mix(
    base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = make_hidden(base)
    whole = features([*PROMPTS, ""])
    assert not whole[-1].any()
    monkeypatch.setattr(hidden, "BATCH", 2)
    scale = np.abs(whole[:-1]).mean()
    np.testing.assert_allclose(features([*PROMPTS, ""]), whole, atol=0.1 * scale)


def test_a_loaded_network_is_used(base: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    features = make_hidden(base)
    network = transformers.AutoModelForCausalLM.from_pretrained(base.folder, dtype="auto")
    monkeypatch.setattr(hidden, "_load_network", lambda _: pytest.fail("loaded again"))
    again = open_hidden(features.spec, base, network=network, fingerprint=features.spec.base)
    np.testing.assert_array_equal(again(PROMPTS), features(PROMPTS))


def test_the_network_is_loaded_late(base: Checkpoint) -> None:
    spec = make_hidden(base).spec
    features = open_hidden(spec, base)
    assert features.network is None
    features([""])
    assert features.network is None
    features(["1"])
    assert features.network is not None


def test_another_base_is_refused_with_both_named(base: Checkpoint) -> None:
    spec = make_hidden(base).spec
    math = Checkpoint.open(base.folder.parent / "math")
    with pytest.raises(BaseMismatchError) as caught:
        open_hidden(spec, math)
    assert str(spec.base)[:12] in str(caught.value)
    assert str(math.path) in str(caught.value)


def test_what_transformers_cannot_load_is_said(base: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base.folder, folder)
    (folder / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(CheckpointError, match="ngrams"):
        make_hidden(Checkpoint.open(folder))


def test_without_transformers_the_extra_is_named(
    base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"onebitfmt\[transformers\]"):
        make_hidden(base)
