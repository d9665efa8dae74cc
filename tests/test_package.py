from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

import onebitfmt

ROOT: Final = Path(__file__).resolve().parents[1]
EXAMPLE: Final = ROOT / "spec" / "vectors" / "valid" / "worked-example"
BUNDLE, BASE = str(EXAMPLE / "bundle.obd"), str(EXAMPLE / "base.safetensors")
HEAVY: Final = {"torch", "transformers", "huggingface_hub"}
IMPORT: Final = "import onebitfmt"
RUN: Final = """
from onebitfmt.cli.app import main
sys.argv = ["obd", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    code = end.code or 0
"""


def loaded(statement: str, *arguments: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after a statement that went well."""
    program = (
        f"import json, sys\ncode = 0\n{statement}\n"
        "print(json.dumps([code, sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stdout
    return set(modules)


def test_importing_the_package_loads_nothing_heavy() -> None:
    modules = loaded(IMPORT)
    assert "onebitfmt" in modules
    assert not modules & (HEAVY | {"numba", "numpy", "typer", "safetensors"})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["convert", "--help"],
        ["inspect", BUNDLE, "--tensors"],
        ["inspect", BUNDLE, "--json"],
        ["verify", BUNDLE],
        ["verify", BUNDLE, "--base", BASE],
    ],
    ids=lambda words: " ".join(w for w in words if not w.startswith("/")),
)
def test_commands_on_local_files_load_no_framework(arguments: list[str]) -> None:
    modules = loaded(RUN, *arguments)
    assert "typer" in modules
    assert not modules & HEAVY


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["verify", "--help"]])
def test_help_comes_without_the_libraries_of_numbers(arguments: list[str]) -> None:
    assert not loaded(RUN, *arguments) & {"numba", "numpy"}


def test_public_names_are_importable_and_come_from_the_package() -> None:
    assert sorted(set(onebitfmt.__all__)) == list(onebitfmt.__all__)
    for name in onebitfmt.__all__:
        value = getattr(onebitfmt, name)
        assert value.__name__ == name
        home = importlib.import_module(value.__module__)
        assert value.__module__.startswith("onebitfmt.")
        assert getattr(home, name) is value


def test_public_names_mean_the_same_when_every_module_is_loaded() -> None:
    """A module that has the name of a verb must not take its place."""
    program = (
        "import importlib, onebitfmt, pkgutil\n"
        "for module in pkgutil.walk_packages(onebitfmt.__path__, 'onebitfmt.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        importlib.import_module(module.name)\n"
        "kinds = {n: type(getattr(onebitfmt, n)).__name__ for n in onebitfmt.__all__}\n"
        "assert 'module' not in kinds.values(), kinds"
    )
    assert "numba" in loaded(program)


def test_dir_is_the_public_names_and_the_version() -> None:
    assert dir(onebitfmt) == sorted([*onebitfmt.__all__, "__version__"])


def test_public_names_are_documented() -> None:
    for name in onebitfmt.__all__:
        assert getattr(onebitfmt, name).__doc__, name
    assert onebitfmt.__doc__


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'onebitfmt' has no attribute 'Converter'"):
        _ = onebitfmt.Converter


def test_the_package_is_marked_as_typed() -> None:
    assert (Path(onebitfmt.__file__).parent / "py.typed").is_file()


def test_the_version_has_three_numbers() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", onebitfmt.__version__)


def test_python_m_runs_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onebitfmt", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == f"onebitfmt {onebitfmt.__version__}\n"
