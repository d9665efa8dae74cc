"""Keep fine-tuned experts as one-bit task vectors against one base model.

- `convert`, `restore`, `verify`, `storage`: the verbs, as on the command line;
- `merge_experts`, `Recipe`: bundles or checkpoints merged into a plain checkpoint;
- `Bundle`, `Checkpoint`: an open bundle and an open checkpoint, read lazily;
- `Collection`, `RoutedModel`: bundles with a router, and the model that answers with them;
- `open_bundle`, `open_collection`, `open_checkpoint`: from a folder, or by a Hub id;
- `push`, `pull`: to and from the Hub;
- `onebitfmt.errors`: every exception.

Importing this package loads nothing heavy; names are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onebitfmt.version import __version__ as __version__

if TYPE_CHECKING:
    from onebitfmt.bundle import Bundle
    from onebitfmt.checkpoint import Checkpoint
    from onebitfmt.codecs.sign import SignOptions
    from onebitfmt.collection import Collection
    from onebitfmt.loader.model import RoutedModel
    from onebitfmt.merge.recipe import Recipe
    from onebitfmt.report.storage import storage
    from onebitfmt.source import open_checkpoint
    from onebitfmt.transfer.opening import open_bundle, open_collection
    from onebitfmt.transfer.pull import pull
    from onebitfmt.transfer.push import PushOptions, push
    from onebitfmt.verbs.convert import convert
    from onebitfmt.verbs.merge import merge_experts
    from onebitfmt.verbs.plan import ConvertOptions
    from onebitfmt.verbs.restore import restore
    from onebitfmt.verbs.verify import verify

__all__ = [
    "Bundle",
    "Checkpoint",
    "Collection",
    "ConvertOptions",
    "PushOptions",
    "Recipe",
    "RoutedModel",
    "SignOptions",
    "convert",
    "merge_experts",
    "open_bundle",
    "open_checkpoint",
    "open_collection",
    "pull",
    "push",
    "restore",
    "storage",
    "verify",
]

_HOMES = {
    "Bundle": "onebitfmt.bundle",
    "Checkpoint": "onebitfmt.checkpoint",
    "Collection": "onebitfmt.collection",
    "ConvertOptions": "onebitfmt.verbs.plan",
    "PushOptions": "onebitfmt.transfer.push",
    "Recipe": "onebitfmt.merge.recipe",
    "RoutedModel": "onebitfmt.loader.model",
    "SignOptions": "onebitfmt.codecs.sign",
    "convert": "onebitfmt.verbs.convert",
    "merge_experts": "onebitfmt.verbs.merge",
    "open_bundle": "onebitfmt.transfer.opening",
    "open_checkpoint": "onebitfmt.source",
    "open_collection": "onebitfmt.transfer.opening",
    "pull": "onebitfmt.transfer.pull",
    "push": "onebitfmt.transfer.push",
    "restore": "onebitfmt.verbs.restore",
    "storage": "onebitfmt.report.storage",
    "verify": "onebitfmt.verbs.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
