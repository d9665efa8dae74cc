"""Faults to inject: which requests they hit, and what goes wrong with them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What goes wrong with the requests whose path matches `path` (a regular expression).

    `skip` matching requests pass first, then `times` are hit (None: all of them). What can go
    wrong, in any combination that makes sense:

    - `status`, with `message`, `error_code` (`X-Error-Code`) and `headers`: the answer, in place
      of handling the request (its body is read first);
    - `drop_request_after`: the connection closes after that many bytes of the request's body;
      0 is before anything is read or answered;
    - `drop_response_after`: the connection closes after that many bytes of the answer's body;
    - `lose_answer`: the request is handled, and the connection closes without an answer;
    - `stall_after`: silence after that many bytes of the answer's body, until the server stops;
    - `slow`: seconds for every 64 kB of the body, in either direction;
    - `no_range`: the `Range` header is ignored, so the answer is 200 and the whole file;
    - `wrong_bytes`: the answer's last byte is another one, its length is right;
    - `before`, `after`: called before the request is handled, and before its answer leaves;
    - `reached`: called at the point where the connection drops or stalls.
    """

    path: str
    method: str | None = None
    times: int | None = 1
    skip: int = 0
    status: int | None = None
    message: str = "Injected fault"
    error_code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    drop_request_after: int | None = None
    drop_response_after: int | None = None
    lose_answer: bool = False
    stall_after: int | None = None
    slow: float = 0.0
    no_range: bool = False
    wrong_bytes: bool = False
    before: Callable[[], object] | None = None
    after: Callable[[], object] | None = None
    reached: Callable[[], object] | None = None

    def matches(self, method: str, path: str) -> bool:
        """Whether the fault is meant for such a request."""
        return self.method in (None, method) and re.search(self.path, path) is not None


class Faults:
    """The faults of one server. Of several that match, the one added first counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._seen: dict[int, int] = {}

    def add(self, fault: Fault) -> Fault:
        """Inject a fault from now on."""
        with self._lock:
            self._faults.append(fault)
            self._seen[id(fault)] = 0
        return fault

    def clear(self) -> None:
        """No faults any more."""
        with self._lock:
            self._faults.clear()
            self._seen.clear()

    def hits(self, fault: Fault) -> int:
        """How many requests a fault has hit."""
        with self._lock:
            return max(self._seen.get(id(fault), 0) - fault.skip, 0)

    def take(self, method: str, path: str) -> Fault | None:
        """The fault that hits this request, which uses up one of its times."""
        with self._lock:
            for fault in self._faults:
                if fault.matches(method, path) and self._hit(fault):
                    return fault
        return None

    def _hit(self, fault: Fault) -> bool:
        seen = self._seen[id(fault)]
        if fault.times is not None and seen >= fault.skip + fault.times:
            return False
        self._seen[id(fault)] = seen + 1
        return seen >= fault.skip
