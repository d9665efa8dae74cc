"""The one way to the Hub's client: who we are, how to reach it, and its errors made ours."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from onebitfmt.errors import HubError, OnebitError
from onebitfmt.hub.failures import explanation, without_secrets
from onebitfmt.hub.interrupt import settle
from onebitfmt.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_LIBRARY: Final = "onebitfmt"


@dataclass(frozen=True, kw_only=True, slots=True)
class HubOptions:
    """How to reach the Hub.

    `token`: None is the saved one if there is one, False none at all. `cache_dir`: None is the
    client's own. With `local_files_only` no request is made.
    """

    token: str | bool | None = field(default=None, repr=False)
    cache_dir: Path | None = None
    local_files_only: bool = False

    @property
    def offline(self) -> bool:
        """True where no request may be made: `local_files_only`, or HF_HUB_OFFLINE."""
        from huggingface_hub import is_offline_mode

        settle()
        return self.local_files_only or is_offline_mode()


DEFAULTS: Final = HubOptions()


def hub_api(options: HubOptions = DEFAULTS) -> HfApi:
    """A client that tells the Hub the name and version of this library."""
    from huggingface_hub import HfApi

    return HfApi(token=options.token, library_name=_LIBRARY, library_version=__version__)


def headers(options: HubOptions = DEFAULTS) -> dict[str, str]:
    """The headers of a request that the client has no method for."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    found: dict[str, str] = build_hf_headers(
        token=options.token, library_name=_LIBRARY, library_version=__version__
    )
    return found


@contextmanager
def explained(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn every failure of the Hub's client inside into a `HubError`: what, and what to do next.

    Own errors, interrupts, and mistakes of a program (`TypeError` and the like) pass as they are.
    """
    settle()
    try:
        with _quiet():
            yield
    except OnebitError:
        raise
    except Exception as error:
        words = explanation(error, revision)
        if words is None:
            raise
        raise HubError(f"{repo}: {words}") from None


# What the client logs and our own messages say better, or nobody needs to know.
_NOT_TOLD: Final = (
    "No files matched",
    "Returning existing local_dir",
    "Couldn't access the Hub to check for update",
    "Ignored error while",
    "Ignoring corrupted tree cache",
)


class _ForPeople(logging.Filter):
    """Drops such lines, and the secrets in all others: URLs of downloads hold a signature."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        record.msg, record.args = without_secrets(text), ()
        return not text.startswith(_NOT_TOLD)


@contextmanager
def _quiet() -> Iterator[None]:
    from huggingface_hub.utils.logging import get_logger

    # A logger's own filters do not see what its children log; those of its handlers do.
    handlers = list(get_logger("huggingface_hub").handlers)
    only = _ForPeople()
    for handler in handlers:
        handler.addFilter(only)
    try:
        with warnings.catch_warnings():
            # A full disk is an error of ours, and a file that fits after all is none.
            warnings.filterwarnings("ignore", "Not enough free disk space", UserWarning)
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(only)
