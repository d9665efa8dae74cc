"""What went wrong with the Hub, in one sentence with the next step, without any secret."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_LOGIN: Final = "hf auth login"
_AGAIN: Final = "run the command again: complete files stay, and it goes on from there"
_NO_SPACE: Final = "the disk is full: free space or give another cache folder, and " + _AGAIN
_NOT_THE_HUB: Final = "the answer is not the Hub's; check HF_ENDPOINT, the proxy, and whether the "
_MAX_WORDS: Final = 200


def download_step() -> str:
    """What to do where no request may be made."""
    from huggingface_hub import is_offline_mode

    how = "unset HF_HUB_OFFLINE" if is_offline_mode() else "do without local_files_only"
    return f"{how} to download it"


def explanation(error: Exception, revision: str | None) -> str | None:
    """What happened and what to do next; None where the error is a mistake in a program."""
    from huggingface_hub import errors

    httpx = _httpx()
    if isinstance(error, errors.HfHubHTTPError):
        return _answer(error, revision)
    if _is_wrapper(error) and isinstance(error.__cause__, Exception):
        return explanation(error.__cause__, revision)
    if isinstance(error, errors.IncompleteSnapshotError):
        return f"not all of it is in the Hub cache; {download_step()}"
    if isinstance(
        error,
        errors.LocalEntryNotFoundError
        | errors.RevisionResolutionError
        | errors.OfflineModeIsEnabled,
    ):
        return f"not in the Hub cache; {download_step()}"
    if isinstance(error, httpx.HTTPError | httpx.InvalidURL):
        return _transport(error)
    if isinstance(error, errors.DryRunError):
        return "the Hub cannot be reached; check the network, and the token"
    if isinstance(error, OSError):
        return _system(error)
    if isinstance(error, ValueError):
        return _refused(error)
    if type(error) is RuntimeError or isinstance(error, errors.XetDownloadError):
        return _transfer(error)
    if isinstance(error, ImportError):
        return f"the Hub's client lacks a package ({_words(error)})"
    return None


def _is_wrapper(error: Exception) -> bool:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError | errors.RevisionResolutionError):
        return True
    if type(error) is RuntimeError:
        return str(error).startswith("Error while uploading")
    return type(error) is ValueError and str(error).startswith("Force download failed")


def _answer(error: HfHubHTTPError, revision: str | None) -> str:
    from huggingface_hub import errors

    said = _words(error.server_message or "")
    words = f" ({said})" if said else ""
    if isinstance(error, errors.GatedRepoError):
        return f"gated: ask for access on its page, and log in with: {_LOGIN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such repository, or it is private: log in with: {_LOGIN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {revision or 'main'!r}; give a branch, a tag or a commit"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"a file is missing there{words}"
    if isinstance(error, errors.DisabledRepoError):
        return "the repository is disabled; its page says why"
    status = error.response.status_code
    if status in (404, 405, 501) and "/xet-" in error.response.url.path:
        # A mirror or a proxy that passes the Hub's listings on, but not Xet.
        return f"no transfers by Xet there{words}; run the command again with HF_HUB_DISABLE_XET=1"
    return _by_status(status, said, words)


def _by_status(status: int, said: str, words: str) -> str:
    over = status == 403 and re.search(r"storage|quota|limit|billing|payment", said, re.IGNORECASE)
    if status in (402, 413, 507) or over:
        return f"over a limit of the Hub{words}; send less, free space there, or ask for more"
    if status == 401:
        return f"the Hub does not accept the token{words}; log in with: {_LOGIN}"
    if status == 403:
        return f"the token has no right to this{words}; log in with one that may write: {_LOGIN}"
    if status == 407:
        return f"the proxy wants a password{words}; put it into HTTPS_PROXY or HTTP_PROXY"
    if status == 409:
        return f"in conflict with what is there{words}; run the command again"
    if status == 412:
        return "someone else committed in between; run the command again"
    if status == 429:
        return f"too many requests{words}; wait some minutes, or log in with: {_LOGIN}"
    if status >= 500:
        return f"the Hub fails with status {status}{words}; try again later"
    return f"the Hub answers with status {status}{words}"


def _transport(error: Exception) -> str:
    httpx = _httpx()
    if isinstance(error, httpx.LocalProtocolError):
        # Its words are the header itself, token included.
        return _odd_token()
    words = _words(error)
    if isinstance(error, httpx.ProxyError):
        return f"the proxy refuses ({words}); check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
    if isinstance(error, httpx.TimeoutException):
        return f"no answer in time; check the network, and {_AGAIN}"
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return f"HF_ENDPOINT or a proxy's address is wrong ({words})"
    if isinstance(error, httpx.ConnectError):
        return f"the Hub cannot be reached ({words}); check the network, HF_ENDPOINT and the proxy"
    return f"the connection broke ({words}); {_AGAIN}"


def _system(error: OSError) -> str:
    from huggingface_hub import errors

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _NO_SPACE
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"no token is saved; log in with: {_LOGIN}"
    if isinstance(error, errors.FileMetadataError):
        return f"{_NOT_THE_HUB}network wants a log-in"
    if error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; check the disk and the rights to its folders"
    return _transfer(error)


def _refused(error: ValueError) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError | errors.HfUriError):
        return f"not a Hub id ns/name ({_words(error)})"
    if isinstance(error, UnicodeEncodeError) and error.encoding == "ascii":
        return _odd_token()
    if type(error).__name__ == "JSONDecodeError":
        return f"{_NOT_THE_HUB}network wants a log-in"
    return f"the Hub's client refuses: {_words(' '.join(str(error).split()))}"


def _transfer(error: Exception) -> str:
    """Of hf_xet, which has no errors of its own kind."""
    from huggingface_hub import constants

    words = _words(error)
    if "os error 28" in str(error):
        return _NO_SPACE
    xet = "" if constants.HF_HUB_DISABLE_XET else "; where that does not help, HF_HUB_DISABLE_XET=1"
    return f"the transfer failed ({words}); {_AGAIN}{xet}"


def _odd_token() -> str:
    return f"the token has characters that no token has; log in with: {_LOGIN}"


def _httpx() -> Any:
    # httpx with huggingface_hub 1, httpx2 with 2.
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    return httpx


# --- words ---------------------------------------------------------------------------------------

_SECRETS: Final = (
    (re.compile(r"(\w{1,16}://[^\s?'\"]*)\?[^\s'\"]*?(?=:?(?:[\s'\"]|$))"), r"\1"),  # signatures
    (re.compile(r"://[^/@\s]*@"), "://"),
    (re.compile(r"\b(hf_|Bearer )[\w.~+/-]+=*"), r"\1***"),
)


def without_secrets(text: str) -> str:
    """The text without tokens, passwords, and the queries of URLs."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _words(said: Exception | str) -> str:
    """The first line of a message, without secrets."""
    lines = [line.strip() for line in without_secrets(str(said)).splitlines() if line.strip()]
    return lines[0][:_MAX_WORDS].rstrip(".") if lines else ""
