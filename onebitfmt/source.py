"""Where a checkpoint comes from: a local path, or a Hub id `ns/name[@revision]`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import CheckpointError, HubError
from onebitfmt.hub.address import local_path, parse_hub_id
from onebitfmt.hub.client import DEFAULTS, HubOptions
from onebitfmt.hub.snapshot import Snapshot

# Exact names would need a listing first; nothing else that a model repository holds is large.
_PATTERNS: Final = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.md", "LICENSE*"]
_NOT_WEIGHTS: Final = ["onnx/*", "openvino/*", "original/*", "consolidated*"]


def open_checkpoint(source: str | Path, *, options: HubOptions = DEFAULTS) -> Checkpoint:
    """Open a checkpoint from a folder, a .safetensors file, or the Hub (through its cache).

    What exists here comes first, and a `Path` is never a Hub id. Raises `CheckpointError`,
    `HubError`.
    """
    path = local_path(source)
    if path.exists():
        return Checkpoint.open(path)
    found = None if isinstance(source, Path) else parse_hub_id(source)
    if found is None or found.expert is not None:
        raise CheckpointError(f"{source}: no such file or folder, and not a Hub id (ns/name)")
    try:
        return hub_checkpoint(found.repo, found.revision, options=options)
    except HubError as e:
        raise HubError(f"{source}: no such local path; and on the Hub, {e}") from None


def hub_checkpoint(
    repo: str, revision: str | None = None, *, options: HubOptions = DEFAULTS
) -> Checkpoint:
    """Open a checkpoint of the Hub, whatever lies in a local folder of that name.

    Raises `CheckpointError`, `HubError`.
    """
    snapshot = Snapshot.open(repo, revision, options)
    folder = snapshot.fetch_matching(_PATTERNS, _NOT_WEIGHTS)
    return Checkpoint.open(folder, repo=repo, revision=snapshot.commit)
