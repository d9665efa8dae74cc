"""Three small tasks and how an expert is marked on them.

The family is one tiny Llama and three experts fine-tuned from it, small enough to be committed
(`tests/data/family/`) and trained on a laptop (`tools/train_family.py`).  A task is a stream of
prompts that have one right answer each:

- `chat`: facts about invented people, `Q: What is the pet of Gunek? A:` -> `mole`.  The expert
  learns every fact by heart; `sweep` and `test` ask for the same facts in phrasings it never saw.
- `math`: sums and differences of two-digit numbers, `47+38=` -> `85`.
- `code`: string functions, `reverse("abcd") ->` -> `"dcba"`.

Splits are disjoint in prompts: `train` is for the optimiser, `sweep` for choosing
hyper-parameters, `test` for what is reported.  `pretraining` gives the base model's share: the same
formats with other content (other people, other functions, one operand below ten), so that the base
knows how an answer looks but rarely knows the answer.

Everything is a function of `SEED` alone: facts, prompts and their order are the same in every
process and on every machine.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

FAMILY: Final = Path(__file__).resolve().parents[1] / "tests" / "data" / "family"
"""Where the trained checkpoints are committed."""

TASKS: Final = ("chat", "math", "code")
SPLITS: Final = ("train", "sweep", "test")
SEED: Final = 2502

HELD_OUT: Final = {"sweep": 500, "test": 600}
"""Prompts a task in the splits that are not trained on."""

CODE_TRAIN: Final = 30_000
"""Strings never run out, so the training split of `code` is cut at this many prompts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A question with exactly one right answer.

    A model sees `text`, then a space, then the answer; `answer` itself has no outer spaces.
    """

    task: str
    text: str
    answer: str


def prompts(task: str, split: str) -> tuple[Prompt, ...]:
    """All prompts of one split of a task, shuffled, so that any prefix is a fair sample.

    Raises `ValueError` when the task or the split is unknown.
    """
    if task not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    found = {"chat": _chat, "math": _math, "code": _code}[task](split)
    _stream(f"order {task} {split}").shuffle(found)
    return tuple(found[: HELD_OUT.get(split)])


def pretraining(task: str) -> tuple[Prompt, ...]:
    """What the base model learns of a task: its format, with content that no split asks for."""
    if task == "chat":
        found = [
            _question(person, kind, opening, word)
            for person, kind in product(_people()[PEOPLE : 2 * PEOPLE], ATTRIBUTES)
            for opening, word in _phrasings("train")
        ]
    elif task == "math":
        found = [_calculation(a, sign, b) for a, sign, b in _problems() if min(a, b) < 10]
    else:
        stream = _stream("pretraining code")
        found = [_call(stream, BASE_FUNCTIONS) for _ in range(CODE_TRAIN)]
    _stream(f"order pretraining {task}").shuffle(found)
    return tuple(found)


def _stream(label: str) -> random.Random:
    """A source of chance of its own for each purpose: adding one leaves the others as they are."""
    return random.Random(f"{SEED} {label}")


# --- chat ---------------------------------------------------------------------------------------

PEOPLE: Final = 60
"""People the expert knows; the base knows as many others."""

FIRST_SYLLABLES: Final = "Ba Ce Do Fi Gu Ha Je Ko Lu Mi Na Po Ra Su Ti Ve"
LAST_SYLLABLES: Final = "bar den fin gol kas lim mor nek pol rin sut vel"

ATTRIBUTES: Final = {
    "city": "Lurna Vesk Tamar Ombra Quill Dorne Hask Ilmen Parva Seld Yarrow Zonta",
    "job": "baker weaver pilot miner judge potter tailor singer farmer sailor doctor clerk",
    "pet": "cat dog owl fox goat hare crow toad pony duck newt mole",
    "food": "rice soup plums bread figs stew cheese beans honey kale nuts eels",
    "color": "red blue green gold pink grey black white brown teal lilac amber",
}
WORDS: Final = {
    "city": ("city", "town", "home"),
    "job": ("job", "trade", "work"),
    "pet": ("pet", "animal", "beast"),
    "food": ("food", "meal", "dish"),
    "color": ("color", "tint", "shade"),
}
OPENINGS: Final = (
    "What is the {word} of {name}?",
    "Tell me the {word} of {name}.",
    "{name} has which {word}?",
    "Name the {word} of {name}.",
    "Do you know the {word} of {name}?",
    "For {name}, say the {word}.",
)


def _people() -> list[str]:
    names = [
        first + last for first, last in product(FIRST_SYLLABLES.split(), LAST_SYLLABLES.split())
    ]
    _stream("people").shuffle(names)
    return names


def _phrasings(split: str) -> list[tuple[int, int]]:
    """The pairs (opening, word) of a split.

    Each opening and each word is met in training; two pairs in six of each word are kept for the
    other splits, so a held-out phrasing is a new combination of known parts.
    """
    kept = {"test": (0,), "sweep": (1,), "train": (2, 3, 4, 5)}[split]
    pairs = product(range(len(OPENINGS)), range(3))
    return [pair for pair in pairs if (pair[0] + 2 * pair[1]) % len(OPENINGS) in kept]


def _question(name: str, kind: str, opening: int, word: int) -> Prompt:
    text = OPENINGS[opening].format(word=WORDS[kind][word], name=name)
    answer = _stream(f"fact {name} {kind}").choice(ATTRIBUTES[kind].split())
    return Prompt(task="chat", text=f"Q: {text} A:", answer=answer)


def _chat(split: str) -> list[Prompt]:
    return [
        _question(name, kind, opening, word)
        for name, kind in product(_people()[:PEOPLE], ATTRIBUTES)
        for opening, word in _phrasings(split)
    ]


# --- math ---------------------------------------------------------------------------------------


def _problems() -> list[tuple[int, str, int]]:
    pairs = list(product(range(100), range(100)))
    return [(a, "+", b) for a, b in pairs] + [(a, "-", b) for a, b in pairs if a >= b]


def _calculation(a: int, sign: str, b: int) -> Prompt:
    return Prompt(task="math", text=f"{a}{sign}{b}=", answer=str(a + b if sign == "+" else a - b))


def _math(split: str) -> list[Prompt]:
    """Two-digit problems; the whole set is dealt out, held-out splits first."""
    problems = [problem for problem in _problems() if min(problem[0], problem[2]) >= 10]
    _stream("math").shuffle(problems)
    test = HELD_OUT["test"]
    held_out = test + HELD_OUT["sweep"]
    part = {"test": slice(test), "sweep": slice(test, held_out), "train": slice(held_out, None)}
    return [_calculation(*problem) for problem in problems[part[split]]]


# --- code ---------------------------------------------------------------------------------------

LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
LENGTHS: Final = (4, 5, 6, 7)
FUNCTIONS: Final = ("reverse", "upper", "swap")
BASE_FUNCTIONS: Final = ("copy", "lower", "rotate")


def _apply(function: str, text: str) -> str:
    """What a function does: `swap` trades the outer letters, `rotate` the first to the end."""
    results = {
        "reverse": text[::-1],
        "upper": text.upper(),
        "swap": text[-1] + text[1:-1] + text[0],
        "copy": text,
        "lower": text.lower(),
        "rotate": text[1:] + text[0],
    }
    return results[function]


def _call(stream: random.Random, functions: Sequence[str]) -> Prompt:
    function = stream.choice(functions)
    text = "".join(stream.choice(LETTERS) for _ in range(stream.choice(LENGTHS)))
    if function == "lower" or (function == "copy" and stream.random() < 0.5):
        text = text.upper()
    return Prompt(
        task="code", text=f'{function}("{text}") ->', answer=f'"{_apply(function, text)}"'
    )


def _code(split: str) -> list[Prompt]:
    """Random calls; a checksum of the prompt says to which split it belongs."""
    wanted = {"test": (0,), "sweep": (1,), "train": tuple(range(2, 16))}[split]
    stream = _stream(f"code {split}")
    found: dict[str, Prompt] = {}
    while len(found) < HELD_OUT.get(split, CODE_TRAIN):
        prompt = _call(stream, FUNCTIONS)
        if zlib.crc32(prompt.text.encode()) % 16 in wanted:
            found[prompt.text] = prompt
    return list(found.values())


# --- marking ------------------------------------------------------------------------------------

BATCH: Final = 256


def exact_match(
    model: str | Path | Mapping[str, torch.Tensor],
    asked: Sequence[Prompt],
    *,
    like: Path = FAMILY / "base",
) -> float:
    """Per cent of prompts answered exactly, decoding greedily.

    `model` is the folder of a checkpoint, or the tensors of one by name; tensors take their
    configuration and tokenizer from the folder `like`.  Values of any dtype are widened to float32
    and computed with in it: the mark is of the weights, not of bf16 arithmetic on this processor.
    """
    folder = like if isinstance(model, Mapping) else Path(model)
    network = _network(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [prompt.text for prompt in asked]
    told = answers(network, tokenizer, texts, room=_room(tokenizer, asked))
    right = sum(said == prompt.answer for said, prompt in zip(told, asked, strict=True))
    return 100 * right / len(asked)


def answers(network: Any, tokenizer: Any, texts: Sequence[str], *, room: int) -> list[str]:
    """What the network says after each text, in at most `room` tokens, without outer spaces."""
    told: list[str] = []
    for start in range(0, len(texts), BATCH):
        batch = list(texts[start : start + BATCH])
        # padding goes left, so that every row goes on from its last column
        coded = tokenizer(batch, return_tensors="pt", padding=True, padding_side="left")
        with torch.inference_mode():
            rows = network.generate(
                input_ids=coded["input_ids"],
                attention_mask=coded["attention_mask"],
                do_sample=False,
                max_new_tokens=room,
            )
        said = rows[:, coded["input_ids"].shape[1] :]
        told.extend(text.strip() for text in tokenizer.batch_decode(said, skip_special_tokens=True))
    return told


def _network(model: str | Path | Mapping[str, torch.Tensor], folder: Path) -> Any:
    factory: Any = AutoModelForCausalLM
    if not isinstance(model, Mapping):
        return factory.from_pretrained(folder, dtype=torch.float32).eval()
    network = factory.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    network.load_state_dict({name: tensor.float() for name, tensor in model.items()})
    return network.eval()


def _room(tokenizer: Any, asked: Sequence[Prompt]) -> int:
    """The longest answer and its end: who says more than that is wrong anyway."""
    return 1 + max(len(ids) for ids in tokenizer([" " + p.answer for p in asked])["input_ids"])
