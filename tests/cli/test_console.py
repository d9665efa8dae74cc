from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import onebitfmt
from onebitfmt.cli import console
from onebitfmt.errors import (
    BaseMismatchError,
    CheckpointError,
    FormatError,
    MissingDependencyError,
    OnebitError,
    OutputError,
    UnsupportedError,
    UsageError,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1), ("1000000", 10**6), ("4GB", 4 * 10**9), ("500 MB", 5 * 10**8), ("1.5k", 1500),
        ("2K", 2000), ("3T", 3 * 10**12), (" 7 B ", 7), ("0.001GB", 10**6),
    ],
)  # fmt: skip
def test_sizes_are_powers_of_1000(text: str, expected: int) -> None:
    assert console.parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1", "4GiB", "1e9", "0", "0.1", "4 GB GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        console.parse_size(text)


def test_a_table_is_aligned_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    console.table("title", ("name", "n"), [("x" * 300, "1"), ("y", "22")])
    assert capsys.readouterr().out.splitlines() == [
        "title",
        f"{'name':<300}   n",
        f"{'-' * 300}  --",
        f"{'x' * 300}   1",
        f"{'y':<300}  22",
    ]


def test_a_table_without_rows_has_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    console.table("title", ("name", "n"), [])
    assert capsys.readouterr().out == "title\nname  n\n----  -\n"


def test_json_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"é": [1, None]})
    assert json.loads(capsys.readouterr().out) == {"é": [1, None]}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FormatError("OBD-X", "place", "words"), 1),
        (BaseMismatchError("words"), 1),
        (UsageError("words"), 2),
        (UnsupportedError("OBD-X", "place", "words"), 3),
        (CheckpointError("words"), 3),
        (OutputError("words"), 3),
        (MissingDependencyError("words", "plot"), 3),
        (OnebitError("words"), 3),
        (OSError(5, "words"), 3),
        (FileNotFoundError(2, "words", "place"), 3),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_an_error_is_a_line_on_stderr_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    @console.command
    def fail() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        fail()
    found = capsys.readouterr()
    assert caught.value.exit_code == code
    assert found.out == ""
    assert found.err == f"error: {error}\n"
    assert "words" in found.err


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    @console.command
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as caught:
        fail()
    assert caught.value.exit_code == 130
    assert capsys.readouterr().err == "interrupted; nothing was written\n"


def test_a_bug_is_not_hidden() -> None:
    @console.command
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


@pytest.mark.parametrize("quiet", [True, False])
def test_progress_writes_nothing_where_there_is_no_terminal(
    capfd: pytest.CaptureFixture[str], quiet: bool
) -> None:
    with console.progress("title", 10, quiet=quiet) as done:
        done(4)
        done(6)
    assert capfd.readouterr() == ("", "")


def test_a_command_says_what_became_of_its_work(capsys: pytest.CaptureFixture[str]) -> None:
    @console.command(interrupted="interrupted; the half is kept")
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as caught:
        fail()
    assert caught.value.exit_code == 130
    assert capsys.readouterr().err == "interrupted; the half is kept\n"


PROGRAM = """
import threading, time
from onebitfmt.cli import console

def run(quiet=False):
    threading.Thread(target=time.sleep, args=[30]).start()
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        print("cleared")

console.catch_signals()
console.command(interrupted="interrupted; a word")(run)()
"""


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGINT, 130, "interrupted; a word\n"), (signal.SIGTERM, 143, "")],
)
def test_a_signal_lets_a_command_clear_up_and_waits_for_no_thread(
    number: int, code: int, words: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": str(Path(onebitfmt.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (code, "cleared\n", words)


@pytest.mark.parametrize("quiet", [True, False])
def test_the_hub_draws_no_bars_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    found = []

    @console.command
    def show(quiet: bool) -> None:
        found.append(os.environ["HF_HUB_DISABLE_PROGRESS_BARS"])

    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    show(quiet=quiet)
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")
    show(quiet=quiet)
    assert found == ["0", "1"]
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")


def test_text_of_a_stranger_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("a\x1b[2Jb\r\x9bc\u202ed\te\u00e9\nvalid")
    console.table("t\x07", ("x",), [["\x1b]0;title\x07\nvalid"]])
    out = capsys.readouterr().out
    assert out.startswith("a\ufffd[2Jb\ufffd\ufffdc\ufffdd\te\u00e9\ufffdvalid\n")
    assert len(out.splitlines()) == 5
    assert not {"\x1b", "\x07", "\r", "\x9b", "\u202e"} & set(out)
