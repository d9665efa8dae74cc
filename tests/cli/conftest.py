from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from onebitfmt.cli.app import app
from tests.hubserver.server import TOKEN
from tests.transfer.published import local_collection, published  # noqa: F401

Run = Callable[..., Any]


@pytest.fixture
def obd() -> Run:
    """Runs `obd` with arguments and compares the exit code; no error may be a traceback.

    Whatever happens, the token of the test's Hub is not told.
    """

    def run(*arguments: object, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        assert TOKEN not in result.output + result.stdout + result.stderr
        return result

    return run
