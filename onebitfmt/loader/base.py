"""The base model's tensors for a device, kept there, in CPU memory, or only on disk."""

from __future__ import annotations

from threading import Lock
from typing import Final

import torch

from onebitfmt.checkpoint import Checkpoint, digest
from onebitfmt.errors import UsageError
from onebitfmt.format.manifest import BaseTensor
from onebitfmt.loader.packed import to_torch

KEEP_BASE: Final = ("device", "cpu", "disk")


class BaseTensors:
    """Base tensors on a device in their own dtype. Safe to use from several threads."""

    def __init__(self, base: Checkpoint, device: torch.device, keep: str) -> None:
        """`keep` is where tensors stay between uses: `device`, `cpu`, or `disk` (mapped)."""
        if keep not in KEEP_BASE:
            raise UsageError(f"keep_base is one of {', '.join(KEEP_BASE)}, not {keep!r}")
        self.base = base
        self.device = device
        self.keep = keep
        self._digests: dict[str, str] = {}
        self._kept: dict[str, torch.Tensor] = {}
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors kept."""
        with self._lock:
            return sum(t.nbytes for t in self._kept.values())

    @property
    def stays(self) -> bool:
        """True where a tensor, once used, stays on the device."""
        return self.keep == "device" or (self.keep == "cpu" and self.device.type == "cpu")

    def holds(self, wanted: BaseTensor) -> bool:
        """True where the base has this very tensor, by digest; it is computed once a tensor."""
        name = wanted.name
        if name not in self.base:
            return False
        if name not in self._digests:
            self._digests[name] = digest(self.base.bits(name))
        return self._digests[name] == wanted.digest

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor on the device; never a view of the mapping, whose pages may be let go of."""
        with self._lock:
            kept = self._kept.get(name)
        if kept is None:
            kept = to_torch(self.base.tensor(name))
            if self.keep == "disk" or self.stays:
                kept = kept.clone() if self.device.type == "cpu" else kept.to(self.device)
            else:
                kept = kept.clone()
            self.base.release(name)
            if self.keep != "disk":
                with self._lock:
                    kept = self._kept.setdefault(name, kept)
        return kept.to(self.device)

    def release(self, name: str | None) -> None:
        """After a use of the mapped tensor elsewhere: let go of its pages under policy `disk`."""
        if self.keep == "disk" and name is not None and name in self.base:
            self.base.release(name)
