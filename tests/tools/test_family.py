from __future__ import annotations

import json
import math
from typing import Any

import family
import pytest
import torch
import train_family
from safetensors.torch import load_file

MODELS = ("base", *family.TASKS)
SUBSET = 100


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((family.FAMILY / "results.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize("task", family.TASKS)
def test_splits_are_disjoint_in_prompts(task: str) -> None:
    texts = [{prompt.text for prompt in family.prompts(task, split)} for split in family.SPLITS]
    texts.append({prompt.text for prompt in family.pretraining(task)})
    assert sum(len(split) for split in texts) == len(set().union(*texts))


@pytest.mark.parametrize("task", family.TASKS)
def test_held_out_splits_have_their_size_and_no_prompt_twice(task: str) -> None:
    for split, size in family.HELD_OUT.items():
        asked = family.prompts(task, split)
        assert len({prompt.text for prompt in asked}) == len(asked) == size >= 500
        assert all(prompt.task == task for prompt in asked)


@pytest.mark.parametrize("split", family.HELD_OUT)
@pytest.mark.parametrize("task", family.TASKS)
def test_splits_are_those_of_the_committed_results(
    task: str, split: str, results: dict[str, Any]
) -> None:
    assert train_family.digest(family.prompts(task, split)) == results["prompts"][split][task]


def test_every_fact_asked_for_is_taught_in_other_words() -> None:
    def facts(split: str) -> set[tuple[str, str]]:
        names = family._people()[: family.PEOPLE]
        return {
            (next(name for name in names if name in prompt.text), prompt.answer)
            for prompt in family.prompts("chat", split)
        }

    taught = facts("train")
    assert len({name for name, _ in taught}) == family.PEOPLE
    assert facts("sweep") <= taught
    assert facts("test") <= taught


def test_answers_are_right() -> None:
    for prompt in family.prompts("math", "test"):
        left, sign, right = prompt.text[:2], prompt.text[2], prompt.text[3:5]
        value = int(left) + int(right) if sign == "+" else int(left) - int(right)
        assert (prompt.text[5:], prompt.answer) == ("=", str(value))
    for prompt in family.prompts("code", "test"):
        function, text, rest = prompt.text.replace("(", "").split('"')
        expected = {
            "reverse": "".join(reversed(text)),
            "upper": text.upper(),
            "swap": f"{text[-1]}{text[1:-1]}{text[0]}",
        }
        assert (rest, prompt.answer) == (") ->", f'"{expected[function]}"')


@pytest.mark.parametrize(("task", "split"), [("poetry", "test"), ("chat", "validation")])
def test_unknown_names_are_refused(task: str, split: str) -> None:
    with pytest.raises(ValueError, match="expected one of"):
        family.prompts(task, split)


def test_checkpoints_share_shape_and_tokenizer_and_stay_small() -> None:
    states = [load_file(family.FAMILY / name / "model.safetensors") for name in MODELS]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    assert all(shape == shapes[0] for shape in shapes)
    assert all(tensor.dtype == torch.bfloat16 for state in states for tensor in state.values())
    assert "lm_head.weight" in shapes[0]
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert len({(family.FAMILY / name / file).read_bytes() for name in MODELS}) == 1
    files = [path for path in family.FAMILY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 11_500_000


@pytest.mark.parametrize("task", family.TASKS)
def test_expert_beats_the_base_at_its_task(task: str, results: dict[str, Any]) -> None:
    asked = family.prompts(task, "test")[:SUBSET]
    base = family.exact_match(family.FAMILY / "base", asked)
    expert = family.exact_match(family.FAMILY / task, asked)
    assert expert >= base + 30
    # the committed figure is of the whole split: a subset may differ by sampling, not by much
    assert abs(expert - results["accuracy"][task][task]) <= 15


def test_tensors_are_marked_like_the_folder_they_come_from() -> None:
    asked = family.prompts("code", "sweep")[:40]
    folder = family.FAMILY / "code"
    state = load_file(folder / "model.safetensors")
    assert family.exact_match(state, asked) == family.exact_match(folder, asked)


def test_committed_deltas_are_those_of_the_checkpoints(results: dict[str, Any]) -> None:
    for task in family.TASKS:
        deltas = train_family.relative_deltas(family.FAMILY / "base", family.FAMILY / task)
        assert deltas == pytest.approx(results["relative_delta"][task], abs=1e-3)
        assert 0 < deltas["all"] < 0.2


def test_training_batches_learn_only_what_the_recipe_says() -> None:
    tokenizer = train_family.train_tokenizer()
    asked = family.prompts("math", "train")[:2] + family.prompts("code", "train")[:1]
    ids, labels = train_family.batch_of(train_family.encode(tokenizer, asked, whole=False))
    for row, prompt in enumerate(asked):
        learned = labels[row][labels[row] != train_family.IGNORED]
        assert tokenizer.decode(learned) == f" {prompt.answer}{train_family.END}"
        assert tokenizer.decode(ids[row]).startswith(prompt.text)


def test_schedule_warms_up_and_ends_near_zero() -> None:
    rates = [train_family._schedule(step, 100) for step in range(100)]
    assert max(rates) == 1.0
    assert rates[0] == pytest.approx(0.2)
    assert 0 < rates[-1] < 0.01
    assert math.isclose(train_family._schedule(0, 1), 1.0)
