"""What goes wrong between `obd` and the Hub: what a user sees, what is left, and the repeat."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from signal import SIGINT, SIGKILL, Signals
from threading import Event
from typing import Any, Final

from family import FAMILY
from hub_stage import BASE, OUT, REPO, Done, Stop, demand, obd, serving

from tests.hubserver.faults import Fault
from tests.hubserver.hub import Hub

EXPERT: Final = f"{REPO}:math"
FOLDER: Final = "experts/math.obd"
FILE: Final = f"{FOLDER}/mlp.obd.safetensors"
MANIFEST: Final = f"{FOLDER}/obd.json"
PUT: Final = "/_lfs/put/"
COMMIT: Final = "/commit/main"
OFFLINE: Final = {"HF_HUB_OFFLINE": "1"}
NOWHERE: Final = {"HF_ENDPOINT": "http://127.0.0.1:9"}
NOBODY: Final = {"HF_TOKEN": ""}
WRONG_TOKEN: Final = {"HF_TOKEN": "hf_wrong"}
OUTSIDER: Final = {"HF_TOKEN": "hf_outsider"}
Files = Mapping[str, bytes]
Spoil = Callable[[Hub, Event], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A fault, and what has to come of it.

    `spoil` brings it about; it is given an event to set where `stop` is to be sent. `mend` ends it;
    faults of the server end by themselves. `env` and `prefix` are those of the first run, which
    ends with `code`, says `says`, and leaves `commits` commits.
    """

    name: str
    code: int = 3
    says: str = ""
    spoil: Spoil = lambda hub, reached: None
    mend: Callable[[Hub], object] = lambda hub: None
    env: Mapping[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    source: str = EXPERT
    into_folder: bool = False
    stop: Signals | None = None
    commits: int = 0


def fault_lines(bundle: Path, threads: Executor) -> Iterator[str]:
    """Run every case, and give what came of each."""
    with serving("published") as hub:
        hub.commit(BASE, _base())
        obd(hub, *_push(bundle))
        files = {path: hub.read(REPO, path) for path in hub.files(REPO)}
    pushes = threads.map(partial(_run_push, bundle), push_cases())
    pulls = threads.map(partial(_run_pull, files), pull_cases(files))
    return chain(pushes, pulls)


# --- the cases -----------------------------------------------------------------------------------


def push_cases() -> list[Case]:
    """Faults of a first push."""
    slow = _held("before", PUT, skip=2, slow=30.0)
    return [
        Case(name="dropped once, at 30 kB", spoil=_fault(PUT, drop_request_after=30_000),
             code=0, commits=1),
        Case(name="dropped always, at 30 kB", says="run the command again",
             spoil=_fault(PUT, drop_request_after=30_000, times=None)),
        Case(name="503 once", spoil=_fault(PUT, status=503), code=0, commits=1),
        Case(name="503 always", spoil=_fault(PUT, status=503, times=None), says="again"),
        Case(name="503 of the commit", spoil=_fault(COMMIT, status=503), says="503"),
        Case(name="slow, Ctrl-C", spoil=slow, stop=SIGINT, code=130, says="interrupted"),
        Case(name="kill -9", spoil=slow, stop=SIGKILL, code=-SIGKILL),
        Case(name="stale parent", spoil=_compete, says="someone else committed"),
        Case(name="lost answer of the commit", spoil=_fault(COMMIT, lose_answer=True), commits=1,
             says="run the command again"),
        Case(name="not logged in", env=NOBODY, says="hf auth login"),
        Case(name="bad token", env=WRONG_TOKEN, says="hf auth login"),
        Case(name="read-only token", env=OUTSIDER, spoil=_read_only, says="no right"),
        Case(name="over quota", says="quota",
             spoil=_fault(COMMIT, status=403, message="Storage quota exceeded")),
        Case(name="a proxy without Xet", env={"HF_HUB_DISABLE_XET": "0"},
             says="HF_HUB_DISABLE_XET=1"),
        Case(name="offline", env=OFFLINE, says="HF_HUB_OFFLINE"),
        Case(name="no server", env=NOWHERE, says="cannot be reached"),
    ]  # fmt: skip


def pull_cases(files: Files) -> list[Case]:
    """Faults of pulling an expert."""
    broken = partial(_fault, f"/resolve/.*/{FILE}", method="GET")
    stalled = _held("reached", f"/resolve/.*/{FILE}", method="GET", stall_after=300_000)
    return [
        Case(name="dropped once, at 300 kB", spoil=broken(drop_response_after=300_000), code=0),
        Case(name="dropped always, at 300 kB", says="run the command again",
             spoil=broken(drop_response_after=300_000, times=None)),
        Case(name="503 once", spoil=broken(status=503), code=0),
        Case(name="503 always", spoil=broken(status=503, times=None), says="503"),
        Case(name="503 always, from the start", says="503",
             spoil=_fault("/api/models/", status=503, times=None)),
        Case(name="stalled, Ctrl-C", spoil=stalled, stop=SIGINT, code=130, says="interrupted"),
        Case(name="kill -9", spoil=stalled, stop=SIGKILL, code=-SIGKILL),
        Case(name="kill -9, into a folder", spoil=stalled, stop=SIGKILL, code=-SIGKILL,
             into_folder=True),
        _wrong("wrong bytes of a group's file", FILE, files),
        _wrong("wrong bytes of obd.json", MANIFEST, files),
        _wrong("wrong bytes of config.json", "config.json", files),
        Case(name="no such repository", spoil=_remove, says="no such repository",
             mend=lambda hub: hub.commit(REPO, files)),
        Case(name="gated", spoil=_gate, env=OUTSIDER, says="gated"),
        Case(name="private, no token", spoil=_hide, env=NOBODY, says="private"),
        Case(name="private, not a member", spoil=_hide, env=OUTSIDER, says="private"),
        Case(name="bad token", env=WRONG_TOKEN, says="hf auth login"),
        Case(name="no such revision", source=f"{EXPERT}@v9", says="no revision 'v9'",
             mend=lambda hub: hub.tag(REPO, "v9")),
        Case(name="offline, nothing here", env=OFFLINE, says="HF_HUB_OFFLINE"),
        Case(name="offline, all in the cache", env=OFFLINE, spoil=_pull_before, code=0),
        Case(name="no server, nothing here", env=NOWHERE, says="cannot be reached"),
        Case(name="no server, all in the cache", env=NOWHERE, spoil=_pull_before, code=0),
        _full_disk(),
    ]  # fmt: skip


def _fault(path: str, **what: Any) -> Spoil:
    return lambda hub, reached: hub.faults.add(Fault(path=path, **what))


def _held(moment: str, path: str, **what: Any) -> Spoil:
    """A transfer that does not go on; `moment` names what is called when it is time to stop it."""

    def spoil(hub: Hub, reached: Event) -> None:
        call: dict[str, Any] = {moment: reached.set}
        hub.faults.add(Fault(path=path, **what, **call))

    return spoil


def _wrong(name: str, path: str, files: Files) -> Case:
    right = files[path]
    at = right.index(b'"sha256":"') + 20 if path.endswith(".json") else len(right) // 2
    digit = b"1" if right[at : at + 1] == b"0" else b"0"
    wrong = right[:at] + digit + right[at + 1 :]
    return Case(
        name=name,
        spoil=lambda hub, reached: hub.replace(REPO, path, wrong),
        mend=lambda hub: hub.replace(REPO, path, right),
        says="removed",
    )


def _compete(hub: Hub, reached: Event) -> None:
    hub.faults.add(Fault(path=COMMIT, before=lambda: hub.commit(REPO, {"theirs.txt": b"x"})))


def _read_only(hub: Hub, reached: Event) -> None:
    hub.add_token(OUTSIDER["HF_TOKEN"], role="read")


def _gate(hub: Hub, reached: Event) -> None:
    hub.add_token(OUTSIDER["HF_TOKEN"], member=False)
    hub.repo(REPO).gated = True


def _hide(hub: Hub, reached: Event) -> None:
    hub.add_token(OUTSIDER["HF_TOKEN"], member=False)
    hub.repo(REPO).private = True


def _remove(hub: Hub, reached: Event) -> None:
    del hub.server.store.repos["model", REPO]


def _pull_before(hub: Hub, reached: Event) -> None:
    obd(hub, "pull", EXPERT)


def _full_disk() -> Case:
    probe = OUT / "disk"
    probe.mkdir()
    if not _mount(probe, "size=1m"):
        limit = ("prlimit", "--fsize=300000")
        return Case(name="disk full (in truth: a limit on the size of files)", prefix=limit)
    _unmount(probe)
    return Case(
        name="disk full (a tmpfs of 600 kB)",
        spoil=lambda hub, reached: _mount(hub.cache, "size=600k"),
        mend=lambda hub: _mount(hub.cache, "remount,size=100m"),
        says="the disk is full",
    )


def _mount(folder: Path, options: str) -> bool:
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def _unmount(folder: Path) -> None:
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


# --- running them --------------------------------------------------------------------------------


def _run_push(bundle: Path, case: Case) -> str:
    name = f"push, {case.name}"
    with serving(name) as hub:
        hub.commit(BASE, _base())
        first = _first(hub, name, case, _push(bundle))
        commits = _commits(hub)
        demand(commits == case.commits, name, f"{commits} commits")
        hub.faults.clear()
        again = obd(hub, *_push(bundle))
        demand(again.code == 0, name, f"the repeat fails: {again.err}")
        demand(_commits(hub) == 1, name, f"{_commits(hub)} commits after the repeat")
        for file in bundle.rglob("*.*"):
            path = f"{FOLDER}/{file.relative_to(bundle).as_posix()}"
            demand(hub.read(REPO, path) == file.read_bytes(), name, f"published another {path}")
    return _told(name, first, again, f"{commits} commit{'' if commits == 1 else 's'}")


def _run_pull(files: Files, case: Case) -> str:
    name = f"pull, {case.name}"
    with serving(name) as hub:
        hub.commit(REPO, files)
        folder = hub.home.with_name("folder") if case.into_folder else None
        arguments = ["pull", case.source, *(["--local-dir", str(folder)] if folder else [])]
        try:
            first = _first(hub, name, case, arguments)
            left = _left(hub, name, case.source, folder, files)
            hub.faults.clear()
            case.mend(hub)
            hub.repo(REPO).gated = hub.repo(REPO).private = False
            again = obd(hub, *arguments)
            demand(again.code == 0, name, f"the repeat fails: {again.err}")
            after = _here(hub, name, folder, files)
            demand(after == _wanted(files), name, "the repeat left something out")
        finally:
            _unmount(hub.cache)
    return _told(name, first, again, left)


def _base() -> dict[str, bytes | Path]:
    return {path.name: path for path in (FAMILY / "base").iterdir()}


def _push(bundle: Path) -> list[str]:
    return ["push", str(bundle), REPO, "--base-model-id", BASE]


def _first(hub: Hub, name: str, case: Case, arguments: list[str]) -> Done:
    reached = Event()
    case.spoil(hub, reached)
    stop = Stop(signal=case.stop, reached=reached) if case.stop else None
    done = obd(hub, *arguments, env=case.env, prefix=case.prefix, stop=stop)
    expected = done.code == case.code and case.says in done.err
    demand(expected, name, f"exit code {done.code}, {case.says!r} expected:\n{done.err}")
    return done


def _commits(hub: Hub) -> int:
    """How many commits are ours: neither the initial one, nor a competitor's."""
    commits = hub.commits(REPO) if hub.exists(REPO) else []
    return sum(commit.title.startswith("Update expert") for commit in commits)


def _wanted(files: Files) -> set[str]:
    return {path for path in files if path.startswith(f"{FOLDER}/")}


def _here(hub: Hub, name: str, folder: Path | None, files: Files) -> set[str]:
    """The expert's files that can be opened here; none of the repository's may be wrong."""
    root = folder or next(hub.cache.glob("*experts/snapshots/*"), hub.cache)
    here = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
    for path in here.keys() & files.keys():
        demand(here[path].read_bytes() == files[path], name, f"a wrong {path} is left")
    return here.keys() & _wanted(files)


def _left(hub: Hub, name: str, source: str, folder: Path | None, files: Files) -> str:
    """What is left of the expert; only a whole one may pass as valid."""
    found, total = len(_here(hub, name, folder, files)), len(_wanted(files))
    if not found:
        return "nothing of the expert"
    code = obd(hub, "verify", folder / FOLDER if folder else source, env=OFFLINE).code
    demand((code == 0) == (found == total), name, f"verify ends with {code}")
    return f"{found} of {total} files, none wrong; verify: {code}"


def _told(name: str, first: Done, again: Done, left: str) -> str:
    lines = first.err.splitlines() or ["(nothing)"]
    said = next((line for line in lines if line.startswith("error: ")), lines[-1])
    retries = first.err.count("Retrying in")
    tried = f" (before it, lines of the client about {retries} retries)" if retries else ""
    row = f"{first.code:4}  {again.code:6}  {first.seconds:7.1f}  {name}: {left}"
    return f"{row}\n        {said}{tried}"
