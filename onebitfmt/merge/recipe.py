"""A recipe: which method merges the experts, and with which parameters; read and written as YAML.

Fields are named as in mergekit's configuration files where they mean the same:

    merge_method: onebit_merging
    preset: onebit
    select: math
    seed: 0
    parameters: {density: 0.2, lambda: 0.1}
    models:
      - model: chat
        parameters: {weight: 0.5}
    groups:
      mlp: {density: 0.3}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, Final

import yaml

from onebitfmt.errors import UsageError
from onebitfmt.groups import GROUPS
from onebitfmt.merge import table
from onebitfmt.merge.ties import PRESETS

METHODS: Final[tuple[str, ...]] = tuple(table.METHODS)
_FIELDS: Final = frozenset(
    {"merge_method", "preset", "select", "seed", "parameters", "models", "groups"}
)
_PARAMETERS: Final = frozenset(
    {"density", "lambda", "lambda_onebit", "lambda_dense", "normalize", "rescale"}
)
_SHOWN: Final = 80
_OF_GROUPS: Final = frozenset({"density", "lambda", "lambda_onebit", "lambda_dense"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How to merge. Making one raises `UsageError` for a value that means nothing.

    `density` is the share of a task vector that trimming or dropping keeps. A tensor's lambda, the
    factor of what is merged, is `lambda_onebit` where any merged task vector of it is one-bit and
    `lambda_dense` elsewhere; None is the method's own: 0.1 for `onebit_merging` with a selected
    expert, else 1. `weights` has experts' weights by name, by default 1. `groups` overrides
    density and lambdas for layer groups. `rescale` makes up for what was dropped: None is yes for
    DARE, no for trimming. `normalize` divides by the sum of the weights: None is yes, except for
    sums, and for `dare_ties` of the preset mergekit.
    """

    method: str = "onebit_merging"
    preset: str = "onebit"
    select: str | None = None
    density: float = 0.2
    lambda_onebit: float | None = None
    lambda_dense: float | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seed: int = 0
    rescale: bool | None = None
    normalize: bool | None = None

    def __post_init__(self) -> None:
        """Check every field. Raises `UsageError`."""
        _one_of("method", self.method, METHODS)
        _one_of("preset", self.preset, tuple(PRESETS))
        _check_numbers("recipe", {"density": self.density} | _given(self))
        for name, weight in self.weights.items():
            _check_numbers(f"expert {name}", {"weight": weight})
        for group, values in self.groups.items():
            _one_of("group", group, GROUPS)
            _known(f"group {group}", values, _OF_GROUPS)
            _check_numbers(f"group {group}", values)
        if PRESETS[self.preset].whole_model and self._trims and self._group_densities:
            raise UsageError(
                f"preset {self.preset} trims the model as a whole, so groups have no density of "
                "their own; use preset paper, onebit or mergekit"
            )
        if self.rescale and self._trims and self.preset != "mergekit":
            raise UsageError("only preset mergekit rescales what trimming leaves; drop rescale")

    @property
    def _trims(self) -> bool:
        return table.METHODS[self.method].sparsify == "trim"

    @property
    def _group_densities(self) -> bool:
        return any("density" in values for values in self.groups.values())

    def with_select(self, name: str | None) -> Recipe:
        """The same recipe with another selected expert, or with none."""
        return replace(self, select=name)

    def density_of(self, group: str) -> float:
        """The density of a layer group."""
        return float(self.groups.get(group, {}).get("density", self.density))

    def lambda_of(self, group: str, *, onebit: bool) -> float:
        """The lambda of tensors of a layer group with, or without, one-bit task vectors."""
        kind = "lambda_onebit" if onebit else "lambda_dense"
        values = self.groups.get(group, {})
        given = values.get(kind, values.get("lambda"))
        if given is None:
            given = self.lambda_onebit if onebit else self.lambda_dense
        if given is None:
            method = table.METHODS[self.method]
            given = 1.0 if method.routed and self.select is None else method.scale
        return float(given)

    @property
    def normalizes(self) -> bool:
        """`normalize`, or what the method does unless told."""
        if self.normalize is not None:
            return self.normalize
        if self.method == "dare_ties":
            return self.preset != "mergekit"
        return table.METHODS[self.method].combine != "sum"

    @property
    def rescales(self) -> bool:
        """`rescale`, or what the method does unless told."""
        drops = table.METHODS[self.method].sparsify == "drop"
        return drops if self.rescale is None else self.rescale


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file. Raises `UsageError` for a file that is missing or no recipe."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{path}: not a readable recipe ({e})") from None
    return parse_recipe(text, str(path))


def parse_recipe(text: str, where: str) -> Recipe:
    """Read a recipe from YAML; `where` names it in messages. Raises `UsageError`."""
    try:
        # References let a small file stand for an endless document.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise UsageError(f"{where}: a recipe has no references (&, *)")
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as e:
        raise UsageError(f"{where}: not valid YAML ({_shown(e)})") from None
    top = _mapping(where, document if document is not None else {})
    _known(where, top, _FIELDS)
    parameters = _mapping(f"{where}: parameters", top.get("parameters", {}))
    _known(f"{where}: parameters", parameters, _PARAMETERS)
    groups = _mapping(f"{where}: groups", top.get("groups", {}))
    return Recipe(
        method=_text(where, top, "merge_method", Recipe().method) or "",
        preset=_text(where, top, "preset", Recipe().preset) or "",
        select=_text(where, top, "select", None),
        seed=_integer(where, top.get("seed", 0)),
        density=_number(where, "density", parameters.get("density", Recipe().density)),
        lambda_onebit=_lambda(where, parameters, "lambda_onebit"),
        lambda_dense=_lambda(where, parameters, "lambda_dense"),
        weights=_weights(where, top.get("models", [])),
        groups={g: _group(where, g, v) for g, v in groups.items()},
        rescale=_flag(where, parameters, "rescale"),
        normalize=_flag(where, parameters, "normalize"),
    )


def dump_recipe(recipe: Recipe) -> str:
    """A recipe as YAML, which `parse_recipe` reads back as an equal one."""
    parameters: dict[str, Any] = {"density": recipe.density} | _given(recipe)
    if recipe.lambda_onebit is not None and recipe.lambda_onebit == recipe.lambda_dense:
        parameters = {"density": recipe.density, "lambda": recipe.lambda_onebit}
    for name in ("normalize", "rescale"):
        if getattr(recipe, name) is not None:
            parameters[name] = getattr(recipe, name)
    document: dict[str, Any] = {"merge_method": recipe.method, "preset": recipe.preset}
    if recipe.select is not None:
        document["select"] = recipe.select
    document |= {"seed": recipe.seed, "parameters": parameters}
    if recipe.weights:
        document["models"] = [
            {"model": name, "parameters": {"weight": weight}}
            for name, weight in recipe.weights.items()
        ]
    if recipe.groups:
        document["groups"] = {g: dict(values) for g, values in recipe.groups.items()}
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


def _given(recipe: Recipe) -> dict[str, float]:
    both = {"lambda_onebit": recipe.lambda_onebit, "lambda_dense": recipe.lambda_dense}
    return {name: value for name, value in both.items() if value is not None}


# --- checks --------------------------------------------------------------------------------------


def _one_of(what: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"unknown {what} {_shown(value)}; known are {', '.join(known)}")


def _known(where: str, found: Mapping[str, Any], known: frozenset[str]) -> None:
    if unknown := sorted(str(name) for name in found if name not in known):
        raise UsageError(
            f"{where}: unknown field {_shown(unknown[0])}; known are {', '.join(sorted(known))}"
        )


def _check_numbers(where: str, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if not isfinite(value):
            raise UsageError(f"{where}: {name} must be finite, not {value}")
        if name == "density" and not 0.0 <= value <= 1.0:
            raise UsageError(f"{where}: density is a share from 0 to 1, not {value}")


def _mapping(where: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UsageError(f"{where}: expected fields with names, got {_shown(value)}")
    return value


def _text(where: str, fields: Mapping[str, Any], name: str, default: str | None) -> str | None:
    value = fields.get(name, default)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{where}: {name} must be text, not {_shown(value)}")
    return value


def _number(where: str, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{where}: {name} must be a number, not {_shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise UsageError(f"{where}: {name} is too large") from None


def _shown(value: object) -> str:
    """A value from a file, cut to a length that a message can bear."""
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _integer(where: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{where}: seed must be an integer, not {_shown(value)}")
    return value


def _flag(where: str, parameters: Mapping[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise UsageError(f"{where}: {name} must be true or false, not {_shown(value)}")
    return value


def _lambda(where: str, parameters: Mapping[str, Any], name: str) -> float | None:
    value = parameters.get(name, parameters.get("lambda"))
    return None if value is None else _number(where, name, value)


def _group(where: str, group: str, values: object) -> Mapping[str, float]:
    found = _mapping(f"{where}: group {group}", values)
    return {name: _number(f"{where}: group {group}", name, v) for name, v in found.items()}


def _weights(where: str, models: object) -> Mapping[str, float]:
    if not isinstance(models, list):
        raise UsageError(f"{where}: models must be a list, not {_shown(models)}")
    weights: dict[str, float] = {}
    for entry in models:
        fields = _mapping(f"{where}: models", entry)
        _known(f"{where}: models", fields, frozenset({"model", "parameters"}))
        name = _text(f"{where}: models", fields, "model", None)
        parameters = _mapping(f"{where}: model {name}", fields.get("parameters", {}))
        _known(f"{where}: model {name}", parameters, frozenset({"weight"}))
        if name is None or name in weights:
            raise UsageError(f"{where}: every entry of models needs a name of its own")
        weights[name] = _number(f"{where}: model {name}", "weight", parameters.get("weight", 1.0))
    return weights
