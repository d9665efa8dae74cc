"""Where a checkpoint comes from: a local path, or a Hub id `ns/name[@revision]`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import CheckpointError

_HUB_ID: Final = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
# Exact names would need a listing first; nothing else that a model repository holds is large.
_PATTERNS: Final = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.md", "LICENSE*"]
_NOT_WEIGHTS: Final = ["onnx/*", "openvino/*", "original/*", "consolidated*"]


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open a checkpoint from a folder, a .safetensors file, or the Hub (through its cache).

    Raises `CheckpointError`.
    """
    path = Path(source).expanduser()
    if path.exists():
        return Checkpoint.open(path)
    match = _HUB_ID.fullmatch(str(source))
    if not match:
        raise CheckpointError(f"{source}: no such file or folder, and not a Hub id (ns/name)")
    repo, revision = match[1], match[2]
    folder = _download(repo, revision)
    return Checkpoint.open(folder, repo=repo, revision=folder.name)


def _download(repo: str, revision: str | None) -> Path:
    # Loading it takes half a second, and most runs need no Hub.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=_PATTERNS,
            ignore_patterns=_NOT_WEIGHTS,
            library_name="onebitfmt",
        )
    except GatedRepoError:
        problem = "gated: ask for access on its page, then log in with: hf auth login"
    except RevisionNotFoundError:
        problem = f"has no revision {revision!r}"
    except RepositoryNotFoundError:
        problem = "no such local path, and no such model on the Hub (or private: hf auth login)"
    except LocalEntryNotFoundError:
        problem = "not a local path, not in the Hub cache, and the Hub cannot be reached"
    except HFValidationError:
        problem = "no such file or folder, and not a Hub id (ns/name)"
    except (HfHubHTTPError, OSError) as e:
        problem = f"the Hub download failed: {e}"
    else:
        return Path(folder)
    raise CheckpointError(f"{repo}: {problem}")
