"""The implementations that the vectors are run against, in one form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import obd_reference as reference

from onebitfmt.bundle import Bundle
from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import BaseMismatchError, CheckpointError
from onebitfmt.verbs.verify import verify

Rebuilt = dict[str, tuple[str, tuple[int, ...], bytes]]
# Rebuilds the tensors of a case, or raises an exception with the requirement as `.id`.
Check = Callable[[Path], Rebuilt]


class Refused(Exception):
    """What the library finds; `id` is the only requirement, or a list of all that are broken."""

    def __init__(self, ids: list[str], message: str) -> None:
        super().__init__(message)
        self.id = " ".join(dict.fromkeys(ids))


def reference_check(case: Path) -> Rebuilt:
    tensors = reference.decode(case / "bundle.obd", case / "base.safetensors")
    return {name: tuple(tensor) for name, tensor in tensors.items()}


def library_check(case: Path) -> Rebuilt:
    base = _open_base(case / "base.safetensors")
    findings = verify(case / "bundle.obd", base, jobs=1).findings
    if findings:
        raise Refused([f.id for f in findings], "; ".join(f.message for f in findings))
    bundle = Bundle.open(case / "bundle.obd")
    tensors = {name: bundle.tensor(name, base) for name in bundle.manifest.tensors}
    return {name: (t.dtype, t.shape, t.bits.tobytes()) for name, t in tensors.items()}


def _open_base(path: Path) -> Checkpoint:
    if path.read_bytes()[8:].strip() == b"{}":  # the library opens no checkpoint without tensors
        return Checkpoint(path=path, files=())
    try:
        return Checkpoint.open(path)
    except CheckpointError as error:  # what cannot be read does not hold what is asked for
        raise Refused([BaseMismatchError.id], str(error)) from error


IMPLEMENTATIONS: dict[str, Check] = {"reference": reference_check, "library": library_check}
