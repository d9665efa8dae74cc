from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import onebitfmt

if TYPE_CHECKING:
    from tests.conftest import Pair

Run = Callable[..., Any]

COMMANDS = ("convert", "restore", "inspect", "verify", "storage", "push", "pull")
OPTIONS = {
    "convert": {
        "--output", "-o", "--preset", "--name", "--onebit", "--exact", "--group", "--scale",
        "--planes", "--zeros", "--paper", "--shard-size", "--jobs", "-j", "--dask", "--overwrite",
        "--json", "--quiet", "-q",
    },
    "restore": {
        "--output", "-o", "--shard-size", "--jobs", "-j", "--overwrite",
        "--json", "--quiet", "-q",
    },
    "inspect": {"--tensors", "--json"},
    "verify": {"--base", "--jobs", "-j", "--json", "--quiet", "-q"},
    "storage": {"--plot", "--json"},
    "push": {
        "--private", "--revision", "--create-pr", "--commit-message", "--base-model-id",
        "--dry-run", "--jobs", "-j", "--json", "--quiet", "-q",
    },
    "pull": {
        "--groups", "--revision", "--local-dir", "--cache-dir", "--force-download", "--dry-run",
        "--json", "--quiet", "-q",
    },
}  # fmt: skip


def words(text: str) -> str:
    """The text without colours and boxes."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")


@pytest.mark.parametrize("arguments", [("--help",), ()])
def test_help_lists_every_command(obd: Run, arguments: tuple[str, ...]) -> None:
    result = obd(*arguments, code=0 if arguments else 2)
    for command in COMMANDS:
        assert command in words(result.output)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_its_options(obd: Run, command: str) -> None:
    text = words(obd(command, "--help").output)
    shown = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))
    assert OPTIONS[command] <= shown


def test_help_states_the_exit_codes(obd: Run) -> None:
    text = words(obd("--help").output)
    for line in ("0 done", "1 the answer is no", "2 wrong usage", "3 it could not be tried"):
        assert line in " ".join(text.split())


def test_the_version_is_the_packages(obd: Run) -> None:
    assert obd("--version").stdout == f"onebitfmt {onebitfmt.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nosuch",),
        ("--nosuch",),
        ("convert",),
        ("convert", "a", "b", "-o", "c"),
        ("convert", "a", "b", "-o", "c", "--preset", "none", "--planes", "9"),
        ("convert", "a", "b", "-o", "c", "--preset", "none", "--jobs", "0"),
        ("convert", "a", "b", "-o", "c", "--preset", "none", "--shard-size", "big"),
        ("restore", "a", "b"),
        ("storage", "a"),
        ("inspect",),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_and_says_so_on_stderr(obd: Run, arguments: tuple[str, ...]) -> None:
    result = obd(*arguments, code=2)
    assert result.stdout == ""
    assert "Usage" in words(result.stderr) or "Error" in words(result.stderr)


def python_m(*arguments: object) -> subprocess.CompletedProcess[str]:
    root = str(Path(onebitfmt.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "onebitfmt", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_python_m_is_the_same_command(pair: Pair, obd: Run) -> None:
    found = python_m("inspect", pair.bundle, "--json")
    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads(found.stdout) == json.loads(obd("inspect", pair.bundle, "--json").stdout)


def test_an_error_of_a_real_process_is_one_line(tmp_path: Path) -> None:
    found = python_m("restore", tmp_path / "base", tmp_path / "x.obd", "-o", tmp_path / "out")
    assert found.returncode in (1, 3)
    assert found.stdout == ""
    assert re.fullmatch(r"error: .*\n", found.stderr)


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from onebitfmt.cli import app; "
        "print({'numpy', 'numba', 'torch', 'huggingface_hub', 'matplotlib'} & set(sys.modules))"
    )
    root = str(Path(onebitfmt.__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": root},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout == "set()\n"


def test_a_reader_that_goes_away_is_no_traceback(pair: Pair) -> None:
    root = str(Path(onebitfmt.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "onebitfmt", "inspect", str(pair.bundle), "--tensors", "--json"],
        env=os.environ | {"PYTHONPATH": root}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() != 0
    assert b"Traceback" not in errors
    assert b"Exception" not in errors
