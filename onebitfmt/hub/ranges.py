"""A range of a Hub file's bytes, without the rest of it and without the cache."""

from __future__ import annotations

from onebitfmt.errors import HubError
from onebitfmt.hub.client import HubOptions, explained, headers


def read_range(repo: str, commit: str, path: str, span: range, options: HubOptions) -> bytes:
    """The bytes `span.start` to `span.stop` of a file. Raises `HubError`."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    wanted = {**headers(options), "Range": f"bytes={span.start}-{span.stop - 1}"}
    address = hf_hub_url(repo, path, revision=commit)
    with (
        explained(repo, commit),
        get_session().stream("GET", address, headers=wanted, follow_redirects=True) as answer,
    ):
        if answer.status_code >= 400:
            answer.read()
        hf_raise_for_status(answer)
        # Whole files are as large as a disk.
        if answer.status_code != 206:
            raise HubError(f"{repo}@{commit}: the server there sends no part of {path}")
        data = answer.read()
    if len(data) != len(span):
        raise HubError(f"{repo}@{commit}: {path} ends early; run the command again")
    return bytes(data)
