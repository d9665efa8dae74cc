"""A transformers model whose weights are those of whichever expert a prompt is routed to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any, Final

import torch
from torch import nn

from onebitfmt.collection import Collection
from onebitfmt.errors import UsageError
from onebitfmt.format.manifest import EXPERT_FOLDER
from onebitfmt.loader.packed import torch_dtype
from onebitfmt.loader.skeleton import Unit, build, library, units
from onebitfmt.loader.weights import RoutedWeights
from onebitfmt.parallel import available_cores
from onebitfmt.routing.features import open_featurizer
from onebitfmt.routing.router import Decision, explicit
from onebitfmt.transfer.opening import open_collection
from onebitfmt.transfer.remote import hub_options

DEFAULT_NEW_TOKENS: Final = 128
_COSMETIC: Final = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"})


@dataclass(kw_only=True)
class _Body:
    """A model without weights of its own, for all experts of one configuration."""

    model: Any
    units: tuple[Unit, ...]
    loaded: set[int] = field(default_factory=set)
    coming: dict[int, dict[str, Future[torch.Tensor]]] = field(default_factory=dict)


class RoutedModel:
    """Experts of one base behind one model: `model` is a transformers model, its weights routed.

    After `activate` nothing is rebuilt until a layer first runs; the next layer is then rebuilt
    while it does. Where the weights' budget does not hold a whole model, layers are let go of after
    they ran. One `generate` at a time: others wait.
    """

    def __init__(
        self,
        weights: RoutedWeights,
        folders: Mapping[str | None, Path],
        *,
        collection: Collection | None = None,
        ahead: bool = True,
    ) -> None:
        """`folders` hold config.json and tokenizer of each expert; None is the static merge's.

        `ahead` rebuilds the next layer in the background. Raises `MissingDependencyError`,
        `UsageError`.
        """
        library()
        self.weights = weights
        self.collection = collection
        self._folders = dict(folders)
        self._bodies: dict[str, _Body] = {}
        self._tokenizers: dict[Path, Any] = {}
        self._router: Any = None
        self._streams = False
        self._lock = RLock()
        self._ahead = (
            ThreadPoolExecutor(available_cores(), thread_name_prefix="onebitfmt") if ahead else None
        )
        self._body = self._body_of(weights.active or weights.experts[0])
        self.activate(weights.active or weights.experts[0])

    @staticmethod
    def from_pretrained(
        collection: str | Path | Collection,
        *,
        base: str | Path | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        keep_base: str = "device",
        budget: int | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> RoutedModel:
        """A collection's model, its first expert active; a folder, or ns/name[@revision].

        `base` is needed where the collection does not say where its base is, or says so in vain;
        the recorded one is fetched at its recorded commit, whatever the collection's `revision`.
        `dtype` is by default the one in the first expert's configuration; `keep_base` and `budget`
        are as in `RoutedWeights`, and the last four as in `open_collection`. Raises `FormatError`,
        `CheckpointError`, `UsageError`, `HubError`, `MissingDependencyError`.
        """
        library()
        opened = collection
        if not isinstance(opened, Collection):
            opened = open_collection(
                opened,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        options = hub_options(token, cache_dir, local_files_only)
        of_base = opened.open_base(base, options=options)
        bundles = {name: opened.bundle(name) for name in opened.expert_names}
        for bundle in bundles.values():
            bundle.container.check_complete()
        folders: dict[str | None, Path] = {
            name: bundle.path / EXPERT_FOLDER for name, bundle in bundles.items()
        }
        folders[None] = of_base.folder
        first = next(iter(bundles))
        weights = RoutedWeights(
            of_base,
            bundles,
            opened.recipe,
            device=device,
            dtype=torch_dtype(dtype) or _config_dtype(_config(folders[first])),
            budget=budget,
            keep_base=keep_base,
        )
        weights.activate(first)
        return RoutedModel(weights, folders, collection=opened)

    # --- experts ----------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The transformers model, for use as any other; its weights change with `activate`."""
        return self._body.model

    @property
    def active(self) -> str | None:
        """The active expert; None for the static merge of all."""
        return self.weights.active

    @property
    def tokenizer(self) -> Any:
        """The active expert's own tokenizer."""
        folder = self._folders[self.active]
        if folder not in self._tokenizers:
            loaded = library().AutoTokenizer.from_pretrained(folder, local_files_only=True)
            if loaded.pad_token is None and loaded.eos_token is not None:
                loaded.pad_token = loaded.eos_token
            self._tokenizers[folder] = loaded
        return self._tokenizers[folder]

    def activate(self, expert: str | None) -> None:
        """Switch to an expert, or with None to the static merge of all. Raises `UsageError`.

        Returns at once: weights are rebuilt as layers run, and those still kept are not rebuilt.
        """
        with self._lock:
            before = self._body
            body = self._body_of(expert)
            if body is before and expert == self.active and body.loaded:
                return
            for i in range(len(before.units)):
                self._empty(before, i)
            self.weights.activate(expert)
            # Whether a whole model is more than may be held.
            self._streams = self.weights.budget < self.weights.model_bytes(expert)
            self._body = body
            for i in range(len(body.units)):
                self._empty(body, i)
            self._load_generation_config(body.model, expert)

    def load(self) -> None:
        """Rebuild all layers of the active expert now instead of when they first run.

        Raises `UsageError` where the weights' budget does not hold a whole model.
        """
        with self._lock:
            if self._streams:
                needed = self.weights.model_bytes(self.active)
                raise UsageError(
                    f"a budget of {self.weights.budget} bytes does not hold the whole model; "
                    f"it needs {needed}"
                )
            self._fill(self._body, range(len(self._body.units)))

    def _body_of(self, expert: str | None) -> _Body:
        config = _config(self._folders[expert])
        key = _shape_of(config)
        if key not in self._bodies:
            model = build(config, self.weights.dtype, self.weights.device)
            body = _Body(model=model, units=units(model, self.weights.steps(expert).keys()))
            self._hook(body)
            self._bodies[key] = body
        return self._bodies[key]

    def _load_generation_config(self, model: Any, expert: str | None) -> None:
        folder = self._folders[expert]
        if hasattr(model, "generation_config") and (folder / "generation_config.json").is_file():
            model.generation_config = library().GenerationConfig.from_pretrained(folder)

    # --- layers -----------------------------------------------------------------------------------

    def _hook(self, body: _Body) -> None:
        rest = [i for i, unit in enumerate(body.units) if not unit.layer]

        # Modules may use weights of others without running them (heads, embeddings): whatever is
        # outside the layers comes first.
        def fill_rest(*_: Any) -> None:
            self._fill(body, rest)

        body.model.register_forward_pre_hook(fill_rest)
        for i, unit in enumerate(body.units):

            def fill(*_: Any, i: int = i) -> None:
                self._fill(body, (i,))

            def empty(*_: Any, i: int = i) -> None:
                if self._streams:
                    self._empty(body, i)

            if unit.layer:
                unit.module.register_forward_hook(empty)
            for module in {
                id(m): m for m in (unit.module, *(s.module for s in unit.slots))
            }.values():
                module.register_forward_pre_hook(fill)

    def _fill(self, body: _Body, wanted: Iterable[int]) -> None:
        missing = [i for i in wanted if i not in body.loaded]
        if not missing:
            return
        # The layer that runs next is rebuilt while this one runs.
        for i in (*missing, missing[-1] + 1):
            self._start(body, i)
        for i in missing:
            self._assign(body, i)

    def _start(self, body: _Body, i: int) -> None:
        """Have a unit's tensors rebuilt in the background; failures come up when they are used."""
        if self._ahead is None or i in body.loaded or i in body.coming or i == len(body.units):
            return
        expert = self.active
        sources = dict.fromkeys(slot.source for slot in body.units[i].slots)
        body.coming[i] = {s: self._ahead.submit(self.weights.tensor, s, expert) for s in sources}

    def _assign(self, body: _Body, i: int) -> None:
        coming = body.coming.pop(i, {})
        parameters: dict[str, nn.Parameter] = {}
        for slot in body.units[i].slots:
            source = slot.source
            future = coming.get(source)
            if slot.buffer:
                value = self.weights.tensor(source, self.active)
                slot.module._buffers[slot.name] = value
                continue
            if source not in parameters:
                value = (
                    self.weights.tensor(source, self.active) if future is None else future.result()
                )
                parameters[source] = nn.Parameter(value, requires_grad=False)
            slot.module._parameters[slot.name] = parameters[source]
        body.loaded.add(i)

    def _empty(self, body: _Body, i: int) -> None:
        for future in body.coming.pop(i, {}).values():
            future.cancel()
        for slot in body.units[i].slots:
            if not slot.buffer:
                # On the device and of the dtype that the model says it has, but no weight.
                nothing = torch.empty(0, device=self.weights.device, dtype=self.weights.dtype)
                slot.module._parameters[slot.name] = nn.Parameter(nothing, requires_grad=False)
        body.loaded.discard(i)

    # --- prompts ----------------------------------------------------------------------------------

    def route(self, prompts: Sequence[str], **options: Any) -> list[Decision]:
        """Which expert each prompt goes to; `options` as in `Router.route`. Raises `UsageError`."""
        if self._router is None:
            if self._without_router or self.collection is None:
                known = ", ".join(self.weights.experts)
                raise UsageError(f"there is no router; name the expert: one of {known}")
            router = self.collection.load_router()
            assert router is not None
            self._router = (router, open_featurizer(router.spec, self.weights.base))
        router, featurizer = self._router
        decisions: list[Decision] = router.route(prompts, featurizer, **options)
        return decisions

    def decide(
        self, prompts: Sequence[str], expert: str | None = None, *, min_confidence: float = 0.0
    ) -> list[Decision]:
        """As `route`, but an expert that is named wins, and one that is alone needs no router.

        Where it is less sure than `min_confidence`, the static merge of all experts answers.
        """
        names = self.weights.experts
        if expert is None and len(names) == 1 and self._without_router:
            decision = Decision(expert=names[0], probabilities={}, reason="the only expert")
            return [decision] * len(prompts)
        if expert is None:
            return self.route(prompts, min_confidence=min_confidence)
        if expert not in names:
            raise UsageError(f"no expert {expert!r} here; the experts are {', '.join(names)}")
        return [explicit(expert)] * len(prompts)

    @property
    def _without_router(self) -> bool:
        return self.collection is None or self.collection.router is None

    def generate(
        self,
        prompts: str | Sequence[str],
        expert: str | None = None,
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        decisions: Sequence[Decision] | None = None,
        on_text: Callable[[str], None] | None = None,
        **options: Any,
    ) -> list[str]:
        """What comes after each prompt, in their order; one batch an expert, greedy by default.

        `expert` answers all prompts; else `decisions`, or the router's, tell who answers which.
        `on_text` is given pieces of the text as they come (one prompt only). `options` go to
        transformers' `generate`. Raises `UsageError` where the model cannot generate.
        """
        asked = [prompts] if isinstance(prompts, str) else list(prompts)
        if on_text is not None and len(asked) != 1:
            raise UsageError("text can be streamed for one prompt at a time")
        taken = list(decisions) if decisions is not None else self.decide(asked, expert)
        groups: dict[str | None, list[int]] = {}
        for i, decision in enumerate(taken):
            groups.setdefault(decision.expert, []).append(i)
        told = [""] * len(asked)
        for name, places in groups.items():
            with self._lock:
                self.activate(name)
                texts = self._answers(
                    [asked[i] for i in places], on_text, max_new_tokens=max_new_tokens, **options
                )
            for i, text in zip(places, texts, strict=True):
                told[i] = text
        return told

    def _answers(
        self, prompts: list[str], on_text: Callable[[str], None] | None, **options: Any
    ) -> list[str]:
        model, tokenizer = self.model, self.tokenizer
        if not (hasattr(model, "can_generate") and model.can_generate()):
            raise UsageError(f"{type(model).__name__} does not generate text; call .model instead")
        # Padding goes left, so that every row goes on from its last column.
        coded = tokenizer(
            prompts, return_tensors="pt", padding=len(prompts) > 1, padding_side="left"
        ).to(self.weights.device)
        inputs = {k: v for k, v in coded.items() if k != "token_type_ids"}
        options.setdefault("do_sample", False)
        if on_text is not None:
            options["streamer"] = _streamer(tokenizer, on_text)
        if getattr(model.generation_config, "pad_token_id", None) is None:
            options.setdefault("pad_token_id", tokenizer.pad_token_id)
        with torch.no_grad():
            rows = model.generate(**inputs, **options)
        start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        texts: list[str] = tokenizer.batch_decode(rows[:, start:], skip_special_tokens=True)
        return texts


def _streamer(tokenizer: Any, on_text: Callable[[str], None]) -> Any:
    class Streamer(library().TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            on_text(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _config(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder}: no config.json, so the model's architecture is not known")
    return library().AutoConfig.from_pretrained(folder, local_files_only=True)


def _shape_of(config: Any) -> str:
    """What of a configuration decides on the modules; where it came from does not."""
    said = {k: v for k, v in config.to_dict().items() if k not in _COSMETIC}
    return json.dumps(said, sort_keys=True, default=str)


def _config_dtype(config: Any) -> torch.dtype | None:
    found = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    return torch_dtype(found)
