"""`obd` in a process of its own, whose Hub is the test's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onebitfmt

if TYPE_CHECKING:
    from tests.hubserver.hub import Hub


@contextmanager
def running(hub: Hub, *arguments: object, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """The running command; it is killed in the end."""
    root = str(Path(onebitfmt.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-m", "onebitfmt", *map(str, arguments)],
        env=hub.environment(PYTHONPATH=root, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
