from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest

import onebitfmt
from onebitfmt.verbs.verify import verify
from tests.cli.process import running
from tests.hubserver.faults import Fault
from tests.transfer.published import REPO, contents

if TYPE_CHECKING:
    from tests.hubserver.hub import Hub
    from tests.transfer.published import Published

Run = Callable[..., Any]
MATH = f"{REPO}:math"
FOLDER = "experts/math.obd"
ATTENTION = f"{FOLDER}/attention.obd.safetensors"


def test_the_folder_alone_is_on_stdout(obd: Run, published: Published) -> None:
    result = obd("pull", REPO)
    assert contents(Path(result.stdout.removesuffix("\n"))) == published.files
    first, second = result.stderr.splitlines()
    assert first == f"{REPO}@{published.commit}: chat, math"
    count, total = len(published.files), published.size("")
    assert second == f"fetched {count} files, {total / 1000:.2f} kB; here already: 0 files, 0 B"
    again = obd("pull", REPO)
    assert again.stdout == result.stdout
    assert "fetched 0 files, 0 B; here already" in again.stderr


def test_what_is_missing_is_told_with_the_command_that_completes_it(
    obd: Run, published: Published, tmp_path: Path
) -> None:
    places = ("--revision", published.commit[:8], "--local-dir", tmp_path / "a folder")
    partial = obd("pull", MATH, "--groups", "attention, mlp", *places)
    assert partial.stdout == f"{tmp_path / 'a folder' / FOLDER}\n"
    missing, completing = partial.stderr.splitlines()[-2:]
    assert missing == "missing of math: embedding, head, norm, small files"
    words = shlex.split(completing.removeprefix("complete it with: "))
    assert words == ["obd", "pull", MATH, *map(str, places)]
    assert "missing" not in obd(*words[1:]).stderr
    assert verify(tmp_path / "a folder" / FOLDER).findings == ()


def test_quiet_gives_the_folder_and_no_more(obd: Run, published: Published) -> None:
    result = obd("pull", MATH, "--groups", "norm", "-q")
    assert result.stderr == ""
    assert result.stdout.endswith(f"{published.commit}/{FOLDER}\n")


def test_json(obd: Run, published: Published) -> None:
    arguments = ("pull", MATH, "--groups", "attention", "--json")
    found = json.loads(obd(*arguments).stdout)
    sizes = {p: published.size(p) for p in ("config.json", f"{FOLDER}/obd.json", ATTENTION)}
    assert found == {
        "path": str(next(published.hub.cache.glob(f"*/snapshots/{published.commit}/{FOLDER}"))),
        "repo": REPO,
        "commit": published.commit,
        "experts": ["math"],
        "files": [{"path": p, "bytes": n, "cached": False} for p, n in sizes.items()],
        "fetched_bytes": sum(sizes.values()),
        "missing": {"math": ["mlp", "embedding", "head", "norm", "expert/"]},
        "dry_run": False,
    }
    again = json.loads(obd(*arguments, "--dry-run").stdout)
    assert (again["fetched_bytes"], again["dry_run"]) == (0, True)


def test_a_dry_run_is_a_table(obd: Run, published: Published, tmp_path: Path) -> None:
    arguments = ("pull", MATH, "--groups", "attention", "--local-dir", tmp_path / "d")
    result = obd(*arguments, "--dry-run")
    assert not (tmp_path / "d").exists()
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    amount = f"{published.size(ATTENTION) / 1000:.2f}"
    assert rows[ATTENTION] == [amount, "kB", "fetch"]
    assert f"would fetch 1 file, {amount} kB" in result.stdout
    assert "complete it with" in result.stderr
    obd(*arguments)
    assert "would fetch 0 files" in obd(*arguments, "--dry-run").stdout


def test_options_reach_the_pull(obd: Run, published: Published, tmp_path: Path) -> None:
    obd("pull", MATH, "--groups", "norm", "--cache-dir", tmp_path / "c")
    assert list((tmp_path / "c").rglob("norm.obd.safetensors"))
    result = obd(
        "pull", MATH, "--groups", "norm", "--cache-dir", tmp_path / "c", "--force-download"
    )
    assert "here already: 0 files" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["./here"], 2, "ns/name[:expert][@revision]"),
        ([f"{REPO}:poetry"], 2, "the experts are chat, math"),
        ([REPO, "--groups", "nix"], 2, "the groups are attention, mlp"),
        ([f"{REPO}@v1", "--revision", "v2"], 2, "give one"),
        ([f"{REPO}@v1"], 3, "no revision 'v1'"),
        (["tester/nix"], 3, "hf auth login"),
        (["tester/model"], 3, "is not a collection"),
        (["tester/gated"], 3, "ask for access"),
        (["tester/private"], 3, "private"),
    ],
)
def test_what_cannot_be_pulled(
    hub: Hub,
    obd: Run,
    published: Published,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    model = {"config.json": b'{"model_type":"llama"}'}
    hub.commit("tester/model", model)
    hub.create("tester/gated", gated=True)
    hub.commit("tester/gated", model)
    hub.create("tester/private", private=True)
    monkeypatch.setenv("HF_TOKEN", hub.add_token("hf_other", member=False))
    result = obd("pull", *arguments, code=code)
    assert words in result.stderr
    assert "hf_other" not in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert published.downloaded().keys() <= {"config.json"}


@pytest.mark.usefixtures("quick_retries")
def test_faults_end_with_3_and_a_repeat_succeeds(obd: Run, published: Published) -> None:
    hub = published.hub
    for fault in (
        Fault(path="/tree/", status=500, message=f"no {hub.token}", times=None),
        Fault(path=f"/api/models/{REPO}$", status=401, message=f"Bearer {hub.token}"),
        Fault(path=f"/api/models/{REPO}$", status=429, times=None),
        Fault(path=ATTENTION, method="GET", wrong_bytes=True),
        Fault(path=ATTENTION, method="GET", drop_response_after=100, times=None),
    ):
        hub.faults.add(fault)
        result = obd("pull", MATH, "--groups", "attention", code=3)
        assert "error: " in result.stderr
        assert result.stdout == ""
        hub.faults.clear()
    path = Path(obd("pull", MATH).stdout.strip())
    assert verify(path).findings == ()


# --- a process of its own ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (
            signal.SIGINT,
            130,
            "interrupted; complete files are kept, and the same command goes on\n",
        ),
        (signal.SIGTERM, 143, ""),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_a_stopped_pull_goes_on_at_the_next(
    hub: Hub, obd: Run, published: Published, number: int, code: int, words: str
) -> None:
    reached = Event()
    hub.faults.add(Fault(path=ATTENTION, method="GET", stall_after=99, reached=reached.set))
    with running(hub, "pull", MATH) as process:
        assert reached.wait(20)
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (code, "", words)
    path = Path(obd("pull", MATH).stdout.strip())
    assert verify(path).findings == ()


def test_the_printed_path_serves_wherever_a_folder_is_asked_for(
    hub: Hub, obd: Run, published: Published, tmp_path: Path
) -> None:
    path = obd("pull", MATH, "-q").stdout.strip()
    obd("inspect", path)
    obd("verify", path, "--base", published.local.base)
    obd("restore", published.local.base, path, "-o", tmp_path / "math")
    folder = obd("pull", REPO, "-q").stdout.strip()
    assert "math: attention" in obd("inspect", folder).stdout
    weights = {"model.safetensors": published.local.base / "model.safetensors"}
    base = f"tester/copied-base@{hub.commit('tester/copied-base', weights)}"
    obd("push", folder, "tester/copy", "--base-model-id", base, "-q")
    assert "math: attention" in obd("inspect", "tester/copy").stdout


def test_a_process_offline(hub: Hub, obd: Run, published: Published) -> None:
    with running(hub, "pull", MATH, HF_HUB_OFFLINE="1") as process:
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (3, "")
    assert "HF_HUB_OFFLINE" in err
    assert hub.token not in err
    path = obd("pull", MATH, "-q").stdout
    published.requests()
    with running(hub, "pull", MATH, HF_HUB_OFFLINE="1") as process:
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, path)
    assert "fetched 0 files" in err
    assert len(err.splitlines()) == 2
    assert published.requests() == []


def test_no_terminal_no_progress_bars(hub: Hub, published: Published) -> None:
    environment = hub.environment()
    del environment["HF_HUB_DISABLE_PROGRESS_BARS"]
    done = subprocess.run(
        [sys.executable, "-m", "onebitfmt", "pull", MATH],
        env=environment | {"PYTHONPATH": str(Path(onebitfmt.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stderr.splitlines()) == 2
    assert published.commit in done.stdout
