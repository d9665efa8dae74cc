"""`obd generate`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebitfmt.cli.console import CollectionSource, Json, command, print_json

if TYPE_CHECKING:
    from onebitfmt.loader.model import RoutedModel
    from onebitfmt.routing.router import Decision


@command
def run(
    collection: CollectionSource,
    prompt: Annotated[
        list[str], typer.Option("--prompt", "-p", help="Prompt; may be given several times.")
    ],
    expert: Annotated[
        str | None, typer.Option(help="Expert that answers, whatever the router says.")
    ] = None,
    min_confidence: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Below this probability: static merge of all experts."),
    ] = 0.0,
    base: Annotated[
        str | None, typer.Option(help="Base model, where the collection's is elsewhere.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default: the experts' own.")
    ] = None,
    keep_base: Annotated[
        str, typer.Option(help="Where the base stays between switches: device, cpu, disk.")
    ] = "device",
    as_json: Json = False,
) -> None:
    """Answer prompts with the expert that each is routed to; says on stderr which, and why.

    The text of a single prompt is streamed to stdout.
    """
    _hush()
    from onebitfmt.loader.model import RoutedModel

    model = RoutedModel.from_pretrained(
        collection, base=base, device=device, dtype=dtype, keep_base=keep_base
    )
    decisions = model.decide(prompt, expert, min_confidence=min_confidence)
    if as_json:
        texts = model.generate(prompt, decisions=decisions, max_new_tokens=max_new_tokens)
        answers = zip(prompt, decisions, texts, strict=True)
        print_json([_as_json(*answer) for answer in answers])
        return
    for asked, decision in zip(prompt, decisions, strict=True):
        _answer(model, asked, decision, max_new_tokens)


def _hush() -> None:
    """Keep transformers' progress bars and advice off the terminal; errors still come through."""
    try:
        from transformers.utils import logging
    except ImportError:
        return
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars

    asked_for = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if asked_for:
        # Those of downloads, which transformers has just switched off, too.
        enable_progress_bars()


def _answer(model: RoutedModel, prompt: str, decision: Decision, max_new_tokens: int) -> None:
    name = decision.expert or "all experts merged"
    typer.echo(f"{name}: {decision.reason}", err=True)
    model.generate(prompt, decisions=[decision], max_new_tokens=max_new_tokens, on_text=_write)
    typer.echo()


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _as_json(prompt: str, decision: Decision, text: str) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "expert": decision.expert,
        "reason": decision.reason,
        "probabilities": {k: float(p) for k, p in decision.probabilities.items()},
        "text": text,
    }
