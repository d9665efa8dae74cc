"""The Triton kernels: in the interpreter, on a GPU where there is one, and compiled for one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from onebitfmt.errors import MissingDependencyError
from onebitfmt.kernels import gpu, torch_reference

SAME_TESTS = Path(__file__).with_name("test_torch_reference.py")


def run_same_tests(tmp_path: Path, **environment: str) -> None:
    """The tests of the reference on this module, in a process of their own: how Triton runs its
    kernels is settled when it is imported.
    """
    pytest.importorskip("triton")
    chosen = {"ONEBITFMT_TEST_KERNELS": "gpu", "TRITON_CACHE_DIR": str(tmp_path), **environment}
    done = subprocess.run(
        # numpy, with which the interpreter works, warns where a float overflows.
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore:overflow",
            str(SAME_TESTS),
        ],
        cwd=SAME_TESTS.parents[2],
        env={**os.environ, **chosen},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]


def test_in_the_interpreter(tmp_path: Path) -> None:
    run_same_tests(tmp_path, TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_the_gpu(tmp_path: Path) -> None:
    run_same_tests(tmp_path, ONEBITFMT_TEST_DEVICE="cuda")


MATRIX = {"base": "*i16", "out": "*i16", "height": "i32", "width": "i32"}
PLANES = {"packed": "*u8", "rows": "*fp32", "columns": "*fp32"}
ADDING = {"BASE": 0, "OUT": 0, "BYTES": 128}
SIDE = {
    **dict.fromkeys(("x", "weight", "out"), "*i16"),
    **dict.fromkeys(("count", "height", "width"), "i32"),
    **PLANES,
    "planes": "i32",
    **dict.fromkeys(("order", "experts"), "*i32"),
}
COMPILED: Mapping[str, tuple[dict[str, str], dict[str, Any]]] = {
    "lookup_kernel": ({**MATRIX, "packed": "*u8", "table": "*fp32"}, {**ADDING, "COUNT": 3}),
    "rebuild_kernel": ({**MATRIX, **PLANES, "planes": "i32"}, ADDING),
    "merge_kernel": (
        {**MATRIX, **PLANES, "starts": "*i32", "rule": "*fp32", "divisor": "fp32", "scale": "fp32"},
        {**ADDING, "COUNT": 3, "SELECT": 0, "ELECT": True},
    ),
    "side_kernel": (
        SIDE,
        {"EXACT": False, "DTYPE": 0, "TOKENS": 16, "ROWS": 64, "COLUMNS": 64},
    ),
}


@pytest.mark.parametrize("name", COMPILED)
def test_machine_code_keeps_the_order_of_operations(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling needs no GPU. Fused or flushed operations would change bits."""
    compiler = pytest.importorskip("triton.compiler")
    backends = pytest.importorskip("triton.backends.compiler")
    if gpu.kernels is None or gpu.kernels.interpreted():
        pytest.skip("kernels are interpreted")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types, constants = COMPILED[name]
    source = compiler.ASTSource(
        fn=getattr(gpu.kernels, name),
        signature={**types, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
    )
    target = backends.GPUTarget("cuda", 80, 32)
    compiled = compiler.compile(source, target=target, options={"enable_fp_fusion": False})
    code = compiled.asm["ptx"]
    assert not re.findall(r"\bfma\.|\.ftz", code)
    assert ("mma" in code) == (name == "side_kernel")


def test_a_processor_is_served_by_the_reference() -> None:
    assert gpu.choose("cpu") is torch_reference
    assert gpu.choose(torch.device("meta")) is torch_reference


def test_cuda_is_served_by_triton_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "kernels", object())
    assert gpu.choose("cuda:1") is gpu
    monkeypatch.setattr(gpu, "kernels", None)
    assert gpu.choose("cuda") is torch_reference


def test_without_triton_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "kernels", None)
    signs, scale = torch.zeros(1, 2, 1, dtype=torch.uint8), torch.ones(1, 2)
    with pytest.raises(MissingDependencyError, match=r"pip install 'onebitfmt\[gpu\]'"):
        gpu.unpack_add(torch.zeros(2, 8), signs, scale, torch.ones(1, 8))


def test_both_modules_have_the_same_functions() -> None:
    for name in ("unpack_add", "lookup_add", "merge_add", "side_path"):
        assert callable(getattr(gpu, name))
        assert callable(getattr(torch_reference, name))
