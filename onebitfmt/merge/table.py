"""The closed table of merge methods: what each does to a task vector, and to all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A merge method.

    `sparsify` is what happens to each task vector: "none", "trim" (largest kept) or "drop" (at
    random). `combine` is what happens to them together: "mean", "sum", "elect", or "none" for a
    method that merges nothing. A `routed` method starts from the selected expert and merges the
    others into it. `scale` is its lambda unless a recipe gives one.
    """

    sparsify: str = "none"
    combine: str
    routed: bool = False
    scale: float = 1.0


METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        "average": Method(combine="mean"),
        "task_arithmetic": Method(combine="sum"),
        "ties": Method(sparsify="trim", combine="elect"),
        "dare_linear": Method(sparsify="drop", combine="sum"),
        "dare_ties": Method(sparsify="drop", combine="elect"),
        "onebit_merging": Method(sparsify="trim", combine="elect", routed=True, scale=0.1),
        "select": Method(combine="none", routed=True),
    }
)
