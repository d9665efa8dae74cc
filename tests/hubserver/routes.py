"""Which function answers which path. Path segments arrive unquoted."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from tests.hubserver import reading, repos, uploads, xet
from tests.hubserver.exchange import Call, Reply
from tests.hubserver.store import Refusal

_REPO: Final = r"/api/(models|datasets|spaces)/([\w.-]+/[\w.-]+)"
_FILES: Final = r"/(?:(datasets|spaces)/)?([\w.-]+/[\w.-]+)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One kind of request."""

    methods: frozenset[str]
    path: re.Pattern[str]
    answer: Callable[..., Reply]


def _route(methods: str, path: str, answer: Callable[..., Reply]) -> Route:
    accepted = set(methods.split())
    if "GET" in accepted:
        accepted.add("HEAD")
    return Route(methods=frozenset(accepted), path=re.compile(path), answer=answer)


_ROUTES: Final = (
    _route("GET", "/api/whoami-v2", repos.whoami),
    _route("GET", "/api/agent-harnesses", repos.agent_harnesses),
    _route("POST", "/api/repos/create", repos.create),
    _route("DELETE", "/api/repos/delete", repos.delete),
    _route("POST", "/api/validate-yaml", repos.validate_yaml),
    _route("PUT", _REPO + "/settings", repos.settings),
    _route("GET", _REPO + "/refs", repos.refs),
    _route("POST DELETE", _REPO + "/branch/([^/]+)", repos.branch),
    _route("POST DELETE", _REPO + "/tag/([^/]+)", repos.tag),
    _route("GET", _REPO + "/commits/([^/]+)", repos.commits),
    _route("POST", _REPO + "/preupload/([^/]+)", uploads.preupload),
    _route("POST", _REPO + "/commit/([^/]+)", uploads.commit),
    _route("POST", _FILES + r"\.git/info/lfs/objects/batch", uploads.batch),
    _route("POST", _FILES + r"\.git/info/lfs/objects/verify", uploads.verify),
    _route("PUT", "/_lfs/put/([0-9a-f]{64})", uploads.put),
    _route("PUT", "/_lfs/part/([0-9a-f]{12})/([0-9]+)", uploads.put_part),
    _route("POST", "/_lfs/complete/([0-9a-f]{12})", uploads.complete),
    _route("GET", _REPO + "/xet-(read|write)-token/([^/]+)", xet.token),
    _route("POST", _REPO + "/paths-info/([^/]+)", reading.paths_info),
    _route("GET", _REPO + "/tree/([^/]+)(?:/(.*))?", reading.tree),
    _route("GET", _REPO + "/revision/([^/]+)", reading.info),
    _route("GET", _REPO, reading.info),
    _route("GET", "/_cdn/([0-9a-f]{64})", reading.cdn),
    _route("GET", _FILES + "/resolve/([^/]+)/(.+)", reading.resolve),
    _route("GET", _FILES + "/raw/([^/]+)/(.+)", reading.raw),
)


def answer(call: Call, path: str) -> Reply:
    """Answer a request. Raises `Refusal`."""
    for route in _ROUTES:
        found = route.path.fullmatch(path)
        if found and call.method in route.methods:
            segments = [unquote(part) if part else part for part in found.groups()]
            return route.answer(call, *segments)
    raise Refusal(404, "Sorry, we can't find the page you are looking for.")
