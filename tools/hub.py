"""Publishing and fetching over a Hub on 127.0.0.1: `make hub`.

Drives the `obd` command, as a user would, against the test suite's Hub server with the true
huggingface_hub client. Prints the bytes that each step moves, by LFS and by Xet; and what a user
sees of each fault, what is left after it, and that a repeat succeeds. Ends with an error where a
promise does not hold: a secret or a traceback is printed, a wrong byte is left, a step moves more
than it should, a repeat fails. Everything is written under `.hub/`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from family import FAMILY
from hub_faults import fault_lines
from hub_stage import (
    BASE,
    OUT,
    REPO,
    demand,
    family,
    large,
    manifests_of_7b,
    obd,
    serving,
    trained_again,
)

from onebitfmt.cli.console import percent, size, table
from onebitfmt.collection import ROUTER
from onebitfmt.collection_config import CONFIG
from onebitfmt.format.manifest import FILE_NAME
from tests.hubserver import xet
from tests.hubserver.hub import Hub
from tests.hubserver.store import Entry

_COLUMNS: Final = (
    "step", "commits", "requests", "received", "sent", "payload", "by Xet", "manifests", "rest",
    "rest / payload",
)  # fmt: skip
_MANIFESTS: Final = re.compile(
    r"config\.json|README\.md|router\.safetensors|experts/[^/]+/obd\.json"
)
# Xet's names of many chunks in its store, and of a file in the cache.
_CHUNKS: Final = re.compile(r"(default\.)?[0-9a-f]{64}")
_LEGEND: Final = """\
Bytes moved
received, sent: bodies of all requests and answers, as the server counts them
payload: of these, the experts' files; manifests: config.json, obd.json, README.md, router
by Xet: chunks that Xet stored, or files in the cache; they do not pass the server
rest: what else was received and sent: listings, commits, headers and some tensors of the base"""
_FAULTS: Final = """
Faults, and below each what the user sees
exit  repeat  seconds  fault: what is left of it"""
Table = tuple[str, list[list[str]]]


class Steps:
    """Runs commands against a server and notes what each one moved."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.rows: list[list[str]] = []

    def __call__(self, name: str, *arguments: object, fresh: bool = False) -> int:
        """Run a command that must succeed, `fresh` without a cache; the bytes of its payload."""
        if fresh:
            self.hub.cache = self.hub.cache.with_name(f"cache{len(self.rows)}")
        self.hub.forget()
        before, commits, kept = self.tree(), self._commits(), self._by_xet()
        done = obd(self.hub, *arguments)
        demand(done.code == 0, f"obd {' '.join(map(str, arguments))}", done.err)
        moved = list(self._moved(before))
        manifests = sum(n for path, n in moved if _MANIFESTS.fullmatch(path))
        payload = sum(n for _, n in moved) - manifests
        by_xet = self._by_xet() - kept
        rest = self.hub.received + self.hub.sent - payload - manifests
        sizes = (self.hub.received, self.hub.sent, payload, by_xet, manifests, rest)
        counts = (self._commits() - commits, len(self.hub.requests))
        share = percent(rest, payload + by_xet) if payload + by_xet else ""
        self.rows.append([name, *map(str, counts), *map(size, sizes), share])
        return payload + by_xet

    def tree(self) -> Mapping[str, Entry]:
        """The files of the repository's head, by path."""
        return self.hub.commits(REPO)[0].tree if self.hub.exists(REPO) else {}

    def _commits(self) -> int:
        return len(self.hub.commits(REPO)) - 1 if self.hub.exists(REPO) else 0

    def _by_xet(self) -> int:
        store = self.hub.server.xet_folder
        if store is None:
            return 0
        found = [path for folder in (store, self.hub.cache) for path in folder.rglob("*")]
        chunks = [p for p in found if _CHUNKS.fullmatch(p.name) and not p.is_symlink()]
        return sum(path.stat().st_size for path in chunks)

    def _moved(self, before: Mapping[str, Entry]) -> Iterator[tuple[str, int]]:
        """Files of the repository, and the bytes of them that the server received or sent."""
        new = [e for path, e in self.tree().items() if before.get(path) != e]
        names = {e.etag: e.path for e in new}
        yield from ((e.path, e.size) for e in new if e.sha256 is None)
        for request in self.hub.requests:
            file = re.fullmatch(rf"/{REPO}/resolve/[^/]+/(.+)", request.path)
            if file and request.method == "GET":
                yield file[1], request.sent
            elif request.path.startswith("/_lfs/put/"):
                yield names[request.path.rpartition("/")[2]], request.received


def push_steps(run: Steps, source: Path, base: Path, changed: Path | None = None) -> None:
    """A first push, the same again, and one after an expert has changed."""
    run.hub.commit(BASE, {path.name: path for path in base.iterdir()})
    run("first push", "push", source, REPO, "--base-model-id", BASE)
    run("second push, nothing changed", "push", source, REPO)
    demand(run.rows[-1][1] == "0", "second push", "made a commit")
    if changed is not None:
        total = sum(path.stat().st_size for path in changed.rglob("*") if path.is_file())
        run(f"push of {changed.name}, trained again ({size(total)})", "push", changed, REPO)


def pull_steps(run: Steps, expert: str, group: str) -> None:
    """One group of one expert, then the rest of it, then the same again."""
    source = f"{REPO}:{expert}"
    folder = f"experts/{expert}.obd/"
    files = {path: e.size for path, e in run.tree().items() if path.startswith(folder)}
    total = sum(files.values()) - files[f"{folder}obd.json"]
    wanted = files[f"{folder}{group}.obd.safetensors"]
    name = f"pull :{expert} --groups {group} ({size(wanted)})"
    moved = run(name, "pull", source, "--groups", group, fresh=True)
    moved_later = run(f"pull :{expert}, the rest ({size(total - wanted)})", "pull", source)
    demand((moved, moved_later) == (wanted, total - wanted), name, f"moved {moved}, {moved_later}")
    demand(run("the same again", "pull", source) == 0, source, "moved payload again")


def look_steps(run: Steps, expert: str) -> None:
    """The commands that need no payload."""
    for arguments in (["inspect", REPO], ["inspect", f"{REPO}:{expert}"]):
        name = " ".join(arguments).replace(REPO, "REPO")
        demand(run(name, *arguments, fresh=True) == 0, name, "moved payload")


def of_family(collection: Path, changed: Path, *, by_xet: bool) -> Table:
    """The small family: three experts and a router."""
    with serving("xet" if by_xet else "lfs", xet=by_xet) as hub:
        run = Steps(hub)
        push_steps(run, collection, FAMILY / "base", changed)
        run(f"pull ({size(sum(e.size for e in run.tree().values()))})", "pull", REPO, fresh=True)
        demand(run("the same again", "pull", REPO) == 0, "pull", "moved payload again")
        pull_steps(run, "math", "attention")
        look_steps(run, "math")
        moved = run("route REPO", "route", REPO, "47+38=", fresh=True)
        demand(moved in (0, run.tree()[ROUTER].size), "route REPO", "moved payload")
    return f"the small family, by {'Xet' if by_xet else 'LFS'}", run.rows


def of_large_model() -> Table:
    """One expert of a larger model, where overheads are what they are in practice."""
    model = large()
    with serving("large") as hub:
        run = Steps(hub)
        push_steps(run, model.bundle, model.base)
        pull_steps(run, "large", "attention")
        moved = dict(zip(_COLUMNS, run.rows[2], strict=True))
        demand(float(moved["rest / payload"].split()[0]) < 1, "one group", "1 % or more of rest")
        look_steps(run, "large")
    full = size((model.base / "model.safetensors").stat().st_size)
    return f"a model of {full}, one expert, by LFS", run.rows


def of_7b() -> Table:
    """Looking at three experts of a Llama-2-7B, of which only the manifests are true."""
    with serving("7b") as hub:
        hub.commit(REPO, manifests_of_7b())
        run = Steps(hub)
        look_steps(run, "math")
        moved = sum(request.sent for request in hub.requests)
        demand(moved < 300_000, "inspect REPO:math", f"moved {moved} bytes")
        sizes = {p: e.size for p, e in run.tree().items() if p.endswith((CONFIG, FILE_NAME))}
    told = ", ".join(f"{path} {size(n)}" for path, n in sizes.items() if "/expert/" not in path)
    return f"Llama-2-7B, three experts, manifests alone: {told}", run.rows


def main() -> None:
    """Make what is pushed, then print the tables."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    collection, changed = family(), trained_again("math")
    lanes = [False, True] if xet.works() else [False]
    # Most of the time goes into waiting: the client pauses before it tries again.
    with ThreadPoolExecutor(4) as threads:
        jobs: list[Callable[[], Table]] = [
            *(partial(of_family, collection, changed, by_xet=lane) for lane in lanes),
            of_large_model,
            of_7b,
        ]
        tables = [threads.submit(job) for job in jobs]
        faults = fault_lines(OUT / "math.obd", threads)
        print(_LEGEND)
        for found in tables:
            title, rows = found.result()
            print()
            table(title, _COLUMNS, rows)
        if len(lanes) == 1:
            print("\nXet was not tried: this hf_xet has no local endpoint of the kind known here")
        print(_FAULTS)
        for lines in faults:
            print(lines, flush=True)


if __name__ == "__main__":
    main()
