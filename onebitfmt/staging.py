"""Output folders that exist whole or not at all.

Work happens in a hidden sibling folder, which is synced and renamed at the end. A folder that is
replaced is swapped in one step, so that there is never a moment without one.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from onebitfmt.errors import OutputError

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


def check_output(
    output: Path, *, overwrite: bool, is_ours: Callable[[Path], bool], inputs: Iterable[Path] = ()
) -> None:
    """Refuse early: an output that exists, is not ours to replace, or is among its own inputs.

    Raises `OutputError`.
    """
    if not output.parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder")
    if not output.exists():
        return
    if not overwrite:
        raise OutputError(f"{output} exists; pass --overwrite to replace it")
    if any(path.resolve().is_relative_to(output.resolve()) for path in inputs):
        raise OutputError(f"{output} is an input, too; write to another folder")
    if not output.is_dir() or (any(output.iterdir()) and not is_ours(output)):
        raise OutputError(f"{output} is not something this command writes; it is left alone")


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `output` when the block ends well.

    When it does not, by an error or Ctrl-C, the folder is removed and `output` is as before.
    Raises `OutputError` where the disk is full or the folder cannot be written.
    """
    output = output.absolute()
    _remove_abandoned(output)
    folder = output.parent / f".{output.name}.partial-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        folder.mkdir()
        yield folder
        _sync_tree(folder)
        _put_in_place(folder, output)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"{output.parent}: no space left; nothing was written") from None
        if e.errno == errno.EFBIG:
            problem = "a file grew too large for this disk or its limits; try a smaller shard size"
            raise OutputError(f"{output.parent}: {problem}; nothing was written") from None
        if e.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise OutputError(f"{output.parent}: cannot write there ({e.strerror})") from None
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(output: Path) -> None:
    """Clear what a killed process left for this output."""
    for path in output.parent.glob(f".{glob.escape(output.name)}.partial-*-*"):
        pid = path.name.split("-")[-2]
        if pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent) / name)
        _sync(Path(parent))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(folder: Path, output: Path) -> None:
    if not output.exists():
        folder.rename(output)
    elif not _exchange(folder, output):
        # Two renames leave an instant without either; a crash there loses no data.
        aside = folder.with_name(folder.name + ".old")
        output.rename(aside)
        folder.rename(output)
        shutil.rmtree(aside, ignore_errors=True)
    _sync(output.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one step where the system can; the caller removes what was `b`."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    done = rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    return int(done) == 0
