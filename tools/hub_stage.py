"""What `make hub` works with: servers on 127.0.0.1, the `obd` command, and things to push."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from signal import Signals
from typing import Any, Final

import torch
from family import FAMILY, TASKS, prompts
from safetensors.torch import load_file, save_file

from onebitfmt.collection import entry_of
from onebitfmt.collection_config import CONFIG, bundle_path, dump_config, load_config
from onebitfmt.container import Container
from onebitfmt.format.manifest import FILE_NAME
from onebitfmt.format.manifest_json import dump
from tests.hubserver.hub import Hub
from tests.hubserver.server import HubServer

ROOT: Final = Path(__file__).resolve().parents[1]
OUT: Final = ROOT / ".hub"
REPO: Final = "tester/experts"
BASE: Final = "tester/base"
Shapes = dict[str, tuple[int, ...]]


@contextmanager
def serving(name: str, *, xet: bool = False) -> Iterator[Hub]:
    """An empty Hub with a client's home and cache of its own, below `.hub/`."""
    folder = OUT / "served" / name
    server = HubServer(folder / "server")
    server.start()
    try:
        hub = Hub(server, home=folder / "home", cache=folder / "cache")
        hub.xet(xet)
        yield hub
    finally:
        server.stop()
        shutil.rmtree(folder)
    if server.mistakes:
        raise SystemExit("\n".join(server.mistakes))


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """How a command ended: exit code, what it printed, and the seconds it took.

    Of one that was stopped, the seconds after the signal.
    """

    code: int
    out: str
    err: str
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """A signal to send to a command as soon as `reached` is set."""

    signal: Signals
    reached: threading.Event


def obd(
    hub: Hub,
    *arguments: object,
    env: Mapping[str, str] | None = None,
    prefix: tuple[str, ...] = (),
    stop: Stop | None = None,
) -> Done:
    """Run a command as a user would. No secret and no traceback may be in what it prints."""
    command = [*prefix, sys.executable, "-m", "onebitfmt", *map(str, arguments)]
    environment = hub.environment(**(env or {}))
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    start = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        try:
            if stop:
                demand(stop.reached.wait(60), command, "the fault was not reached")
                start = time.monotonic()
                process.send_signal(stop.signal)
            out, err = process.communicate(timeout=150)
        finally:
            process.kill()
    secrets = (hub.token, environment["HF_TOKEN"], hub.server.signature, "Traceback")
    for secret in secrets:
        demand(not secret or secret not in out + err, command, f"{secret!r} in:\n{out}{err}")
    return Done(code=process.returncode, out=out, err=err, seconds=time.monotonic() - start)


def make(*arguments: object) -> None:
    """Run a local command that has to succeed."""
    command = [sys.executable, "-m", "onebitfmt", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def demand(holds: bool, what: object, problem: str) -> None:
    """Fail, loudly, where something does not hold."""
    if not holds:
        raise SystemExit(f"{what}: {problem}")


# --- things to push ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Large:
    """A base model of 203 MB and a bundle of preset `linear` made against it."""

    base: Path
    bundle: Path


def family() -> Path:
    """A collection of the three experts of the small family, with a router of n-grams."""
    bundles = [OUT / f"{task}.obd" for task in TASKS]
    for task, bundle in zip(TASKS, bundles, strict=True):
        make("convert", FAMILY / "base", FAMILY / task, "-o", bundle, "--preset", task, "-q")
    examples = [{"prompt": p.text, "label": t} for t in TASKS for p in prompts(t, "train")[:200]]
    data, router = OUT / "prompts.jsonl", OUT / "router.safetensors"
    data.write_text("".join(json.dumps(example) + "\n" for example in examples))
    make("router", "train", FAMILY / "base", data, "-o", router, "--features", "ngrams", "-q")
    make("collect", FAMILY / "base", *bundles, "-o", OUT / "family", "--router", router, "-q")
    return OUT / "family"


def trained_again(task: str) -> Path:
    """A bundle of a family's expert whose weights have all moved a little."""
    noise = torch.Generator().manual_seed(1)
    expert = OUT / "again" / task
    shutil.copytree(FAMILY / task, expert)
    tensors = load_file(expert / "model.safetensors")
    moved = {n: (t + 1e-3 * torch.randn(t.shape, generator=noise)) for n, t in tensors.items()}
    moved = {n: t.to(tensors[n].dtype) for n, t in moved.items()}
    save_file(moved, expert / "model.safetensors", metadata={"format": "pt"})
    bundle = expert.with_suffix(".obd")
    make("convert", FAMILY / "base", expert, "-o", bundle, "--preset", task, "-q")
    return bundle


def large() -> Large:
    """Random weights, and an expert a little beside them."""
    seeded = torch.Generator().manual_seed(0)
    shapes = llama(layers=6, hidden=1024, inner=2816, vocabulary=12000)
    base = {n: 0.02 * torch.randn(s, generator=seeded) for n, s in shapes.items()}
    expert = {n: t + 1e-3 * torch.randn(t.shape, generator=seeded) for n, t in base.items()}
    folder = OUT / "large"
    for name, tensors in (("base", base), ("expert", expert)):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text('{"model_type": "llama"}')
        save_file(
            {n: t.bfloat16() for n, t in tensors.items()}, folder / name / "model.safetensors"
        )
    made = Large(base=folder / "base", bundle=folder / "large.obd")
    make("convert", made.base, folder / "expert", "-o", made.bundle, "--preset", "linear", "-q")
    return made


def llama(*, layers: int, hidden: int, inner: int, vocabulary: int) -> Shapes:
    """Names and shapes of a Llama's tensors."""
    attention = {f"self_attn.{part}_proj": (hidden, hidden) for part in "qkvo"}
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    norms = {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
    layer: Shapes = {**attention, **{f"mlp.{n}": s for n, s in mlp.items()}, **norms}
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def manifests_of_7b() -> dict[str, bytes]:
    """A collection of three experts of Llama-2-7B by path: true manifests, stubs of all else.

    Each tensor is described as its like in the small family, with its own name and shape.
    """
    shapes = llama(layers=32, hidden=4096, inner=11008, vocabulary=32000)
    files, experts = {}, {}
    for task in TASKS:
        small = Container.open(OUT / f"{task}.obd").manifest
        tensors = {}
        for name, shape in shapes.items():
            entry = small.tensors[re.sub(r"layers\.\d+", "layers.0", name)]
            assert entry.base is not None
            base = replace(entry.base, name=name, shape=shape)
            tensors[name] = replace(entry, shape=shape, base=base)
        folder = OUT / "7b" / bundle_path(task)
        folder.mkdir(parents=True)
        data = dump(replace(small, tensors=tensors))
        (folder / FILE_NAME).write_bytes(data)
        experts[task] = entry_of(Container.open(folder), task)
        files.update({f"{bundle_path(task)}/{path}": b"stub" for path in small.files})
        files[f"{bundle_path(task)}/{FILE_NAME}"] = data
    config = load_config((OUT / "family" / CONFIG).read_bytes())
    files[CONFIG] = dump_config(replace(config, experts=experts, router=None))
    return files
