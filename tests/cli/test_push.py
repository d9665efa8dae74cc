from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from onebitfmt.collection import Collection
from onebitfmt.routing.router import Router
from onebitfmt.routing.spec import FeatureSpec
from tests.cli.process import running
from tests.hubserver.faults import Fault

if TYPE_CHECKING:
    from tests.conftest import Pair
    from tests.hubserver.hub import Hub

REPO = "tester/experts"
Run = Callable[..., Any]


@pytest.fixture
def base_id(hub: Hub, pair: Pair) -> str:
    commit = hub.commit("tester/base", {"model.safetensors": pair.base / "model.safetensors"})
    return f"tester/base@{commit}"


@pytest.fixture
def collection(pair: Pair, tmp_path: Path) -> Path:
    bundles = {"math": pair.bundle, "code": pair.bundle}
    Collection.create(tmp_path / "c", pair.base, bundles)
    return tmp_path / "c"


def test_commit_and_address_are_printed(hub: Hub, obd: Run, collection: Path, base_id: str) -> None:
    result = obd("push", collection, REPO, "--base-model-id", base_id, "--commit-message", "First")
    head = hub.head(REPO)
    assert result.stdout == f"commit {head}\n{hub.url}/{REPO}/commit/{head}\n"
    assert f"{REPO}: a new public repository\n{REPO}: sent " in result.stderr
    assert hub.commits(REPO)[0].title == "First"
    again = obd("push", collection, REPO)
    assert again.stdout == result.stdout
    assert "nothing to change" in again.stderr


def test_the_base_stays_known_after_the_first_push(
    hub: Hub, obd: Run, pair: Pair, base_id: str
) -> None:
    obd("push", pair.bundle, REPO, "--base-model-id", base_id, "-q")
    result = obd("push", pair.bundle, REPO, "--json")
    value = json.loads(result.stdout)
    assert (value["commit"], value["changed"], value["sent_bytes"]) == (hub.head(REPO), False, 0)
    assert {f["path"] for f in value["files"]} >= {"config.json", "README.md"}


def test_what_is_removed_or_only_joins_is_named(
    hub: Hub, obd: Run, pair: Pair, tmp_path: Path, base_id: str
) -> None:
    spec = FeatureSpec(kind="ngrams", dimension=4, sizes=(1,))
    layer = (np.ones((2, 4), np.float32), np.zeros(2, np.float32))
    router = Router(labels=("code", "math"), spec=spec, layers=(layer,), temperature=1.0)
    bundles = {"math": pair.bundle, "code": pair.bundle}
    Collection.create(tmp_path / "c", pair.base, bundles, router=router)
    obd("push", tmp_path / "c", REPO, "--base-model-id", base_id, "-q")
    told = obd("push", pair.bundle, REPO).stderr
    assert "the router there does not know expert" in told
    Collection.create(tmp_path / "d", pair.base, {"math": pair.bundle})
    told = obd("push", tmp_path / "d", REPO).stderr
    for part in ("code: 9 files", "expert: 9 files", "router.safetensors: 1 file\n"):
        assert f"removed {part}" in told
    commit = hub.commit("tester/moved", {"model.safetensors": pair.base / "model.safetensors"})
    told = obd("push", tmp_path / "d", REPO, "--base-model-id", "tester/moved").stderr
    assert f"the base was {base_id}, and is tester/moved@{commit}" in told


def test_a_dry_run_lists_the_files(hub: Hub, obd: Run, collection: Path, base_id: str) -> None:
    result = obd("push", collection, REPO, "--base-model-id", base_id, "--dry-run")
    assert "would be a new public repository" in result.stderr
    for file in collection.rglob("*"):
        if file.is_file():
            assert file.relative_to(collection).as_posix() in result.stdout
    assert "would send" in result.stderr
    quiet = obd("push", collection, REPO, "--base-model-id", base_id, "--dry-run", "-q")
    assert quiet.output == ""
    assert not hub.exists(REPO)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "--base-model-id"),
        (["--base-model-id", "../base"], 2, "--base-model-id"),
        (["--create-pr", "--revision", "v2"], 2, "--create-pr"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_wrong_usage_says_what_to_do(
    obd: Run, collection: Path, arguments: list[str], code: int, words: str
) -> None:
    assert words in obd("push", collection, REPO, *arguments, code=code).stderr


@pytest.mark.usefixtures("hub")
def test_a_missing_folder(obd: Run, tmp_path: Path) -> None:
    assert "no such" in obd("push", tmp_path / "none", REPO, code=3).stderr


def test_no_message_holds_the_token(
    hub: Hub, obd: Run, collection: Path, base_id: str, quick_retries: None
) -> None:
    for fault in (
        Fault(path="/api/repos/create", status=403, message=f"quota {hub.token}"),
        Fault(path="/objects/batch", status=401, message="Bearer " + hub.token),
        Fault(path="/_lfs/put", status=403, message="no", times=None),
    ):
        hub.faults.clear()
        hub.faults.add(fault)
        result = obd("push", collection, REPO, "--base-model-id", base_id, code=3)
        assert result.stderr.startswith("error: ")
        assert hub.token not in result.output
        assert "?" not in result.stderr.split("error: ")[1]


STORAGE = "Private repository storage limit reached, please upgrade your plan"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(path="/preupload/", status=403, message=STORAGE), STORAGE),
        (Fault(path="/_lfs/put", status=403, message="Storage quota exceeded"), "over a limit"),
        (Fault(path="/_lfs/put", status=507, times=None), "over a limit"),
        (Fault(path="/_lfs/put", drop_request_after=100, times=None), "the connection broke"),
        (Fault(path="/commit/", status=503, message="down", times=None), "status 503 (down)"),
        (Fault(path="/commit/", status=412), "someone else committed"),
        (Fault(path="/commit/", lose_answer=True), "the connection broke"),
        (Fault(path="/validate-yaml", status=400, message="bad"), "README.md"),
        (Fault(path="/api/repos/create", status=409, message="exists"), "run the command again"),
    ],
    ids=lambda value: None if isinstance(value, str) else f"{value.path} {value.status}",
)
@pytest.mark.usefixtures("quick_retries")
def test_a_failed_push_says_why_and_a_repeat_succeeds(
    hub: Hub, obd: Run, collection: Path, base_id: str, fault: Fault, words: str
) -> None:
    hub.faults.add(fault)
    result = obd("push", collection, REPO, "--base-model-id", base_id, code=3)
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert words in line
    hub.faults.clear()
    obd("push", collection, REPO, "--base-model-id", base_id)
    assert len(hub.commits(REPO)) == 2
    for file in (collection / "experts").rglob("*"):
        if file.is_file():
            path = file.relative_to(collection).as_posix()
            assert hub.read(REPO, path) == file.read_bytes()


@pytest.mark.usefixtures("quick_retries")
def test_one_failure_on_the_way_is_no_failure(
    hub: Hub, obd: Run, collection: Path, base_id: str
) -> None:
    hub.faults.add(Fault(path="/_lfs/put", status=503))
    hub.faults.add(Fault(path="/_lfs/put", drop_request_after=1000))
    obd("push", collection, REPO, "--base-model-id", base_id)
    assert len(hub.commits(REPO)) == 2


@pytest.mark.parametrize(
    ("stop", "code", "words"),
    [
        (signal.SIGINT, 130, "goes on"),
        (signal.SIGTERM, 143, ""),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_stopped_push_publishes_nothing_and_a_repeat_completes_it(
    hub: Hub, obd: Run, collection: Path, base_id: str, stop: signal.Signals, code: int, words: str
) -> None:
    hub.create(REPO)
    reached = threading.Event()
    # Some objects arrive, one is stuck on the way.
    hub.faults.add(Fault(path="/_lfs/put", skip=2, slow=30.0, before=reached.set))
    with running(hub, "push", collection, REPO, "--base-model-id", base_id) as process:
        assert reached.wait(30)
        os.kill(process.pid, stop)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == code
    assert words in errors
    assert "Traceback" not in errors
    assert len(hub.commits(REPO)) == 1
    hub.faults.clear()
    obd("push", collection, REPO, "--base-model-id", base_id)
    assert len(hub.commits(REPO)) == 2
    for file in (collection / "experts").rglob("*"):
        if file.is_file():
            path = file.relative_to(collection).as_posix()
            assert hub.read(REPO, path) == file.read_bytes()
