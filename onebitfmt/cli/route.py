"""`obd route`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from onebitfmt.cli.console import CollectionSource, Json, command, print_json, say
from onebitfmt.errors import UsageError

if TYPE_CHECKING:
    from onebitfmt.collection import Collection
    from onebitfmt.routing.router import Decision


@command
def run(
    collection: CollectionSource,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="Prompts to route.")],
    base: Annotated[
        str | None, typer.Option(help="Base model, where the router needs it and it is not known.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Share the weights among so many experts.")] = 1,
    soft: Annotated[bool, typer.Option("--soft", help="Share them among all experts.")] = False,
    min_confidence: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Below this probability: static merge of all."),
    ] = 0.0,
    expert: Annotated[str | None, typer.Option(help="This expert, without asking.")] = None,
    as_json: Json = False,
) -> None:
    """Say which expert of a collection answers a prompt, how sure that is, and why."""
    from onebitfmt.transfer.opening import open_collection

    if soft and top != 1:
        raise UsageError("--soft is all experts and --top some of them; give one of the two")
    opened = open_collection(collection, experts=())
    if expert is not None:
        decisions = [_asked(opened, expert)] * len(prompts)
    else:
        share = len(opened.expert_names) if soft else top
        decisions = _routed(opened, prompts, base, top=share, min_confidence=min_confidence)
    if as_json:
        pairs = zip(prompts, decisions, strict=True)
        print_json([{"prompt": prompt, **asdict(decision)} for prompt, decision in pairs])
    else:
        for decision in decisions:
            say(_line(decision))


def _asked(collection: Collection, expert: str) -> Decision:
    from onebitfmt.routing.router import explicit

    if expert not in collection.expert_names:
        known = ", ".join(collection.expert_names)
        raise UsageError(f"no expert {expert!r} here; the experts are {known}")
    return explicit(expert)


def _routed(
    collection: Collection,
    prompts: list[str],
    base: str | None,
    *,
    top: int,
    min_confidence: float,
) -> list[Decision]:
    from onebitfmt.routing.features import needs_base, open_featurizer

    router = collection.load_router()
    if router is None:
        names = ", ".join(collection.expert_names)
        raise UsageError(
            f"{collection.path} has no router; name an expert with --expert ({names}), or make "
            "the collection again with --router"
        )
    model = collection.open_base(base) if needs_base(router.spec.kind) else None
    featurizer = open_featurizer(router.spec, model)
    return router.route(prompts, featurizer, top=top, min_confidence=min_confidence)


def _line(decision: Decision) -> str:
    shares = decision.weights
    if len(shares) > 1:
        told = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
        return f"{decision.expert}\tweights: {told}"
    return f"{decision.expert or '(all)'}\t{decision.reason}"
