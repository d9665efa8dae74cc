"""A transformers model without weights, and which of its modules needs which tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from onebitfmt.errors import MissingDependencyError, UsageError

try:
    import transformers
except ImportError:  # pragma: no cover - the tests have it
    transformers = None

# Checkpoints from the days of TensorFlow name the parameters of a LayerNorm so.
_OLD_NAMES: Final = ((".weight", ".gamma"), (".bias", ".beta"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """A place in a module for a tensor: attribute `name` of `module`, tensor `source`."""

    module: nn.Module
    name: str
    source: str
    buffer: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """Slots that are filled together when `module`, or a module below it, runs."""

    module: nn.Module
    slots: tuple[Slot, ...]
    layer: bool


def library() -> Any:
    """The transformers package. Raises `MissingDependencyError`."""
    if transformers is None:
        raise MissingDependencyError("transformers", "transformers")
    return transformers


class _LargeTensorsOnMeta(TorchFunctionMode):
    """Gives no memory to matrices that `torch.empty` makes; what is computed is left alone.

    Modules make their weights with `torch.empty`, while buffers that no checkpoint holds (rotary
    frequencies, causal masks) are computed, and so get their right values.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.empty and options.get("device") is None and _is_matrix(args, options):
            options["device"] = "meta"
        return func(*args, **options)


def _is_matrix(args: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
    size = args[0] if args and not isinstance(args[0], int) else args
    size = options.get("size", size)
    return isinstance(size, tuple | list | torch.Size) and len(size) >= 2


def build(config: Any, dtype: torch.dtype | None, device: torch.device) -> Any:
    """A model of a transformers configuration in evaluation mode: buffers right, no weights.

    Parameters are empty tensors on the device. Raises `UsageError` for an unknown architecture.
    """
    if dtype is not None:
        # Some buffers depend on it; newer releases of transformers call it `dtype`.
        setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", dtype)
    kind = _model_class(config)
    # Small weights are still initialised: the caller's random numbers are not used up for that.
    with torch.random.fork_rng(devices=[]):
        with _LargeTensorsOnMeta():
            model = kind._from_config(config)
        if any(b.is_meta for b in model.buffers()):
            model = kind._from_config(config)
    model.tie_weights()
    model.eval()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    return model


def _model_class(config: Any) -> Any:
    names = getattr(config, "architectures", None) or []
    for name in names:
        if (kind := getattr(library(), name, None)) is not None:
            return kind
    said = ", ".join(names) or f"of type {config.model_type}"
    raise UsageError(
        f"architecture {said} is not in this transformers ({library().__version__}); "
        "newer ones may have it, and those that need code from a repository are not run"
    )


def units(model: nn.Module, names: Collection[str]) -> tuple[Unit, ...]:
    """The units of a model: layers (entries of an outermost module list) after all other modules.

    `names` are the tensors there are; a model's parameter may lack or have a leading prefix there.
    Raises `UsageError` where there is none for a parameter.
    """
    sources = _sources(model, set(names))
    layers: list[Unit] = []
    inside: set[str] = set()
    for path, layer in _layers(model):
        below = {f"{path}.{p}" if p else path: m for p, m in layer.named_modules()}
        inside |= below.keys()
        if slots := tuple(s for p, m in below.items() for s in _slots(p, m, sources)):
            layers.append(Unit(module=layer, slots=slots, layer=True))
    rest: list[Unit] = []
    for path, module in model.named_modules():
        if path not in inside and (slots := tuple(_slots(path, module, sources))):
            rest.append(Unit(module=module, slots=slots, layer=False))
    return (*rest, *layers)


def _layers(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList):
            yield from ((f"{below}.{i}", layer) for i, layer in child.named_children())
        else:
            yield from _layers(child, below)


def _slots(path: str, module: nn.Module, sources: Mapping[str, str]) -> Iterator[Slot]:
    for table, buffer in ((module._parameters, False), (module._buffers, True)):
        for name, value in table.items():
            full = f"{path}.{name}" if path else name
            if value is not None and full in sources:
                yield Slot(module=module, name=name, source=sources[full], buffer=buffer)


def _sources(model: nn.Module, names: set[str]) -> dict[str, str]:
    """For each parameter and stored buffer of the model, the name of its tensor."""
    prefix = getattr(model, "base_model_prefix", "") + "."
    parameters = dict(model.named_parameters(remove_duplicate=False))
    by_identity: dict[int, str] = {}
    found: dict[str, str] = {}
    for name in model.state_dict():
        source = _source(name, names, prefix)
        if source is not None:
            found[name] = source
            if name in parameters:
                by_identity.setdefault(id(parameters[name]), source)
    for name, parameter in parameters.items():
        # Tied: the same tensor in both places, whatever else a checkpoint holds.
        tied = by_identity.get(id(parameter))
        if tied is None:
            raise UsageError(
                f"these experts have no tensor for {name} of {type(model).__name__}; write the "
                "model with obd merge and load that, transformers may know how to convert it"
            )
        found[name] = tied
    return found


def _source(name: str, names: set[str], prefix: str) -> str | None:
    spellings = [name] + [
        name.removesuffix(new) + old for new, old in _OLD_NAMES if name.endswith(new)
    ]
    for spelled in spellings:
        for candidate in (spelled, prefix + spelled, spelled.removeprefix(prefix)):
            if candidate in names:
                return candidate
    return None
