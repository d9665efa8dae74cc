"""What all commands share: errors as messages and exit codes, progress, tables, sizes."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Final, NoReturn, TypeVar, overload

import typer

from onebitfmt.errors import (
    BaseMismatchError,
    FormatError,
    MissingBundleError,
    OnebitError,
    UnsupportedError,
    UsageError,
)
from onebitfmt.report.quantities import percent as percent
from onebitfmt.report.quantities import size as size

Command = TypeVar("Command", bound=Callable[..., None])

NO: Final = 1
USAGE: Final = 2
COULD_NOT: Final = 3
INTERRUPTED: Final = 130

# In this order: the first class that fits decides.
_EXIT_CODES: Final[tuple[tuple[type[Exception], int], ...]] = (
    (UnsupportedError, COULD_NOT),
    (MissingBundleError, COULD_NOT),
    (FormatError, NO),
    (BaseMismatchError, NO),
    (UsageError, USAGE),
    (OnebitError, COULD_NOT),
    (OSError, COULD_NOT),
)

BaseModel = Annotated[
    str,
    typer.Argument(
        metavar="BASE", help="Base model: folder, .safetensors file, or Hub id ns/name[@revision]."
    ),
]
BundleSource = Annotated[
    str,
    typer.Argument(metavar="BUNDLE", help="Bundle: folder, or Hub id ns/name:expert[@revision]."),
]
CollectionSource = Annotated[
    str,
    typer.Argument(metavar="COLLECTION", help="Collection: folder, or Hub id ns/name[@revision]."),
]
Jobs = Annotated[
    int | None, typer.Option("--jobs", "-j", min=1, help="Threads; default: all cores.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no tables.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]


_stopped_by: list[int] = []


def catch_signals() -> None:
    """Have SIGINT and SIGTERM raise, so that half-written folders are removed on the way out."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def _stop(number: int, frame: object) -> NoReturn:
    _stopped_by.append(number)
    raise KeyboardInterrupt


def _exit_if_stopped(interrupted: str) -> None:
    # A compiler or a callback in between may turn the interrupt into an error of its own.
    if not _stopped_by:
        return
    if _stopped_by[-1] == signal.SIGINT:
        typer.echo(interrupted, err=True)
    with suppress(OSError):
        sys.stdout.flush()
    # What had to be cleared away has been; threads of a transfer may wait for the Hub for minutes.
    os._exit(128 + _stopped_by[-1])


@overload
def command(function: Command) -> Command: ...
@overload
def command(*, interrupted: str) -> Callable[[Command], Command]: ...
def command(
    function: Command | None = None, *, interrupted: str = "interrupted; nothing was written"
) -> Command | Callable[[Command], Command]:
    """Turn the errors of a command into a message on stderr and an exit code.

    `interrupted` is what Ctrl-C makes it say: what became of the work.
    """
    if function is None:
        return functools.partial(_command, interrupted=interrupted)
    return _command(function, interrupted=interrupted)


def _command(function: Command, *, interrupted: str) -> Command:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        _hush(quiet=bool(kwargs.get("quiet")))
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            _exit_if_stopped(interrupted)
            typer.echo(interrupted, err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of our output went away, as `head` does.
            sys.stderr.close()
            raise typer.Exit(COULD_NOT) from None
        except tuple(kind for kind, _ in _EXIT_CODES) as error:
            _exit_if_stopped(interrupted)
            say(f"error: {error}", err=True)
            code = next(code for kind, code in _EXIT_CODES if isinstance(error, kind))
            raise typer.Exit(code) from None
        except Exception:
            _exit_if_stopped(interrupted)
            raise

    return run  # type: ignore[return-value]


def _hush(*, quiet: bool) -> None:
    """Have the Hub's client draw no progress bars with -q, or where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        # Read when the client is loaded, which local work never does; the user's own word stays.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def progress(title: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar with throughput and time left on stderr; gives what takes numbers of bytes."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
    with bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.advance(task, done)


def say(text: str = "", *, err: bool = False) -> None:
    """Print a line of which parts may come from a stranger's file.

    No control character but the tab gets out: one could steer the terminal, or begin a line that
    looks like ours.
    """
    typer.echo("".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in text), err=err)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout: the first column to the left, all others to the right.

    Nothing is ever cut to the width of the terminal: figures are there to be read, and grepped.
    """
    cells = [columns, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    rule = "  ".join("-" * width for width in widths)
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in cells
    ]
    for line in (title, lines[0], rule, *lines[1:]):
        say(line)


def print_json(value: object) -> None:
    """Print a JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2))


def parse_size(text: str) -> int:
    """Bytes of '4GB', '500 MB' or '1000000', in powers of 1000. Raises `typer.BadParameter`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?)B?\s*", text)
    if not match:
        raise typer.BadParameter(f"{text!r} is not a size such as 4GB or 500MB")
    factor = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}[match[2]]
    nbytes = int(float(match[1]) * factor)
    if nbytes < 1:
        raise typer.BadParameter("a size must be at least one byte")
    return nbytes
