"""How kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile on first use, cached on disk, run without the GIL."""
    compiled = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")(function)
    return cast(Function, compiled)
