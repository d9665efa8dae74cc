"""Train the small family: one base model and three experts, each fully fine-tuned from it.

::

    python tools/train_family.py -o DIR                 # all four; about ten minutes on two cores
    python tools/train_family.py -o DIR --experts math  # one expert, from the base already in DIR

writes `DIR/{base,chat,math,code}/` (plain Hugging Face checkpoints in bf16) and `DIR/results.json`
(exact match on the `test` split, relative deltas, settings, versions), and prints a table.
`tests/data/family/` was made by the first form.

Seeds fix the data, the initial weights and every batch, so two runs on one machine agree.  Another
processor or another torch sums in another order: its weights differ, its accuracies hardly.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import tokenizers
import torch
import transformers
from family import SEED, TASKS, Prompt, exact_match, pretraining, prompts
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY: Final = 512
PAD, END = "<pad>", "</s>"
IGNORED: Final = -100
"""The label that the loss leaves out."""

PROBES: Final = 300
"""Prompts of the base's own content that tell how well it learned its own corpus."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How one model is trained: AdamW, a short warm-up, then a cosine down to zero."""

    steps: int
    batch: int
    rate: float
    epsilon: float
    decay: float
    whole: bool
    """Learn the prompt's text too, as a base model does; an expert learns the answer only."""


BASE: Final = Recipe(steps=1500, batch=72, rate=2.5e-3, epsilon=1e-8, decay=0.05, whole=True)
# No decay in fine-tuning: it would move every weight, those of unused tokens too, away from the
# base for no gain.  A large epsilon for the same reason: with the customary 1e-8 the head's rows
# of tokens that never come up, whose gradients are tiny but of one sign, move the furthest of all.
EXPERTS: Final = {
    "chat": Recipe(steps=300, batch=64, rate=3e-4, epsilon=1e-5, decay=0.0, whole=False),
    "math": Recipe(steps=800, batch=128, rate=4e-4, epsilon=1e-5, decay=0.0, whole=False),
    "code": Recipe(steps=700, batch=64, rate=4e-4, epsilon=1e-5, decay=0.0, whole=False),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is asked for, mark everything that lies in the folder, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--experts",
        nargs="*",
        choices=TASKS,
        help="only these, from the base already in DIR (none: only mark again)",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=float, default=1.0, help="factor on all steps, for trials")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    reporting: Any = transformers.utils.logging
    reporting.disable_progress_bar()
    seconds = _seconds_so_far(options.output)
    if options.experts is None:
        seconds["base"] = train_base(options.output, _shortened(BASE, options.steps))
    for task in TASKS if options.experts is None else options.experts:
        seconds[task] = train_expert(options.output, task, _shortened(EXPERTS[task], options.steps))
    results = mark(options.output, seconds)
    text = json.dumps(results, indent=2) + "\n"
    (options.output / "results.json").write_text(text, encoding="utf-8")
    print(table(results))
    return 0


def _seconds_so_far(output: Path) -> dict[str, float]:
    """The times of earlier runs into this folder: `--experts` trains only a part."""
    path = output / "results.json"
    if not path.exists():
        return {}
    seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))["seconds"]
    return seconds


def _shortened(recipe: Recipe, factor: float) -> Recipe:
    return replace(recipe, steps=max(1, round(recipe.steps * factor)))


# --- tokenizer and model ------------------------------------------------------------------------


def train_tokenizer() -> Any:
    """Byte-level BPE over the whole corpus, so that no word of an expert is foreign to the base.

    Digits and the letters of a quoted string are tokens of their own: the tasks are about them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex('[A-Za-z](?=[A-Za-z]*")'), behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [
        text
        for task in TASKS
        for prompt in (*prompts(task, "train"), *pretraining(task))
        for text in (prompt.text, " " + prompt.answer)
    ]
    tokenizer.train_from_iterator(corpus, trainer)
    factory: Any = PreTrainedTokenizerFast
    return factory(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def new_model(tokenizer: Any) -> LlamaForCausalLM:
    """A Llama of 1.2 million parameters, with an untied head and grouped key and value heads."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        # about 1/sqrt(hidden): with the customary 0.02 so small a model starts slowly
        initializer_range=0.08,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(SEED)
    return LlamaForCausalLM(config)


# --- training -----------------------------------------------------------------------------------


def train_base(output: Path, recipe: Recipe) -> float:
    """Train and save the base on equal shares of the tasks' pretraining content; seconds taken."""
    tokenizer = train_tokenizer()
    model = new_model(tokenizer)
    shares = [encode(tokenizer, pretraining(task), whole=recipe.whole) for task in TASKS]
    seconds = optimise(model, shares, recipe, name="base")
    _save(model, tokenizer, output / "base")
    return seconds


def train_expert(output: Path, task: str, recipe: Recipe) -> float:
    """Fine-tune and save one expert, from the base as saved, bf16 rounding included."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(output / "base")
    model = LlamaForCausalLM.from_pretrained(output / "base", dtype=torch.float32)
    examples = encode(tokenizer, prompts(task, "train"), whole=recipe.whole)
    seconds = optimise(model, [examples], recipe, name=task)
    _save(model, tokenizer, output / task)
    return seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """Token ids of a prompt with its answer, and the first of them that the loss counts."""

    ids: tuple[int, ...]
    learned_from: int


def encode(tokenizer: Any, asked: Sequence[Prompt], *, whole: bool) -> list[Example]:
    """Examples of all prompts; question and answer are coded apart, as they are in generation."""
    questions = tokenizer([prompt.text for prompt in asked])["input_ids"]
    replies = tokenizer([f" {prompt.answer}{END}" for prompt in asked])["input_ids"]
    return [
        Example(ids=(*question, *reply), learned_from=1 if whole else len(question))
        for question, reply in zip(questions, replies, strict=True)
    ]


def batch_of(examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, padded on the right, where causal attention makes padding harmless."""
    width = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for row, example in enumerate(examples):
        tokens = torch.tensor(example.ids)
        ids[row, : len(tokens)] = tokens
        labels[row, example.learned_from : len(tokens)] = tokens[example.learned_from :]
    return ids, labels


def optimise(
    model: LlamaForCausalLM, shares: Sequence[Sequence[Example]], recipe: Recipe, *, name: str
) -> float:
    """Train in place, each batch drawn in equal parts from the shares; the seconds taken."""
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.rate,
        betas=(0.9, 0.98),
        eps=recipe.epsilon,
        weight_decay=recipe.decay,
        fused=True,
    )
    stream = random.Random(f"{SEED} batches {name}")
    model.train()
    started = time.monotonic()
    for step in range(recipe.steps):
        part = recipe.batch // len(shares)
        ids, labels = batch_of([e for share in shares for e in stream.choices(share, k=part)])
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * _schedule(step, recipe.steps)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            line = f"{name} {step + 1}/{recipe.steps} loss {loss.item():.4f}"
            print(f"{line} {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return time.monotonic() - started


def _schedule(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Master weights stay float32 up to here; what is committed is rounded once."""
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # transformers 5 writes a class name that 4 does not have, and how this copy was loaded; the
    # file is to be the same in all four folders
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only"):
        config.pop(key, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


# --- results ------------------------------------------------------------------------------------

GROUPS: Final = {
    "attention": (".self_attn.",),
    "mlp": (".mlp.",),
    "embedding": ("embed_tokens",),
    "head": ("lm_head",),
    "norm": ("norm",),
    "all": ("",),
}


def relative_deltas(base: Path, expert: Path) -> dict[str, float]:
    """The norm of expert minus base over the norm of the base, by layer group."""
    before = {k: v.double() for k, v in load_file(base / "model.safetensors").items()}
    after = {k: v.double() for k, v in load_file(expert / "model.safetensors").items()}
    deltas = {}
    for group, marks in GROUPS.items():
        names = [name for name in before if any(mark in name for mark in marks)]
        moved = sum(float((after[name] - before[name]).square().sum()) for name in names)
        whole = sum(float(before[name].square().sum()) for name in names)
        deltas[group] = round(math.sqrt(moved / whole), 4)
    return deltas


def mark(output: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """Everything that `results.json` holds."""
    present = [name for name in ("base", *TASKS) if (output / name / "config.json").exists()]
    tests = {task: prompts(task, "test") for task in TASKS}
    probes = {task: pretraining(task)[:PROBES] for task in TASKS}
    return {
        "seed": SEED,
        "split": "test",
        "accuracy": {
            name: {task: _mark(output / name, asked) for task, asked in tests.items()}
            for name in present
        },
        "base_on_its_own_content": {
            task: _mark(output / "base", asked) for task, asked in probes.items()
        },
        "relative_delta": {
            name: relative_deltas(output / "base", output / name) for name in present[1:]
        },
        "prompts": {
            split: {task: digest(prompts(task, split)) for task in TASKS}
            for split in ("sweep", "test")
        },
        "parameters": sum(v.numel() for v in load_file(output / "base/model.safetensors").values()),
        "seconds": {name: round(value) for name, value in seconds.items()},
        "settings": {"base": asdict(BASE), **{name: asdict(r) for name, r in EXPERTS.items()}},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }


def _mark(folder: Path, asked: Sequence[Prompt]) -> float:
    return round(exact_match(folder, asked), 2)


def digest(asked: Sequence[Prompt]) -> str:
    """SHA-256 of a split, which ties the committed accuracies to the prompts they were taken on."""
    lines = "".join(f"{prompt.text}\t{prompt.answer}\n" for prompt in asked)
    return hashlib.sha256(lines.encode()).hexdigest()


def table(results: dict[str, Any]) -> str:
    """Accuracies by model and task, then relative deltas by expert and layer group."""
    lines = ["exact match (%)".ljust(18) + "".join(f"{task:>11}" for task in TASKS)]
    rows = {**results["accuracy"], "base, own content": results["base_on_its_own_content"]}
    for name, marks in rows.items():
        lines.append(f"{name:<18}" + "".join(f"{marks[task]:>11.1f}" for task in TASKS))
    lines += ["", "relative delta".ljust(18) + "".join(f"{group:>11}" for group in GROUPS)]
    for name, deltas in results["relative_delta"].items():
        lines.append(f"{name:<18}" + "".join(f"{deltas[group]:>11.3f}" for group in GROUPS))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
