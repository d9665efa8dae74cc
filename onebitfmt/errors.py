"""The exceptions of onebitfmt.

::

    OnebitError
    ├── UsageError              the request makes no sense: options, names, shapes
    ├── CheckpointError         a checkpoint cannot be read
    │   └── BaseMismatchError   the base given is not the base a bundle was made against
    ├── HubError                the Hub cannot be reached, refuses, or sent wrong bytes
    ├── OutputError             the output cannot be written, or exists
    ├── MissingDependencyError  an optional package is not installed
    └── FormatError             bytes that are not a valid bundle
        ├── MissingBundleError  there is no folder at the path at all
        └── UnsupportedError    a valid bundle that is newer than this reader

Library code never prints and never exits: errors carry the words, the CLI decides on exit codes.
"""

from __future__ import annotations


class OnebitError(Exception):
    """Any error that onebitfmt raises on purpose."""


class UsageError(OnebitError):
    """The request cannot be met as stated; the message says what to change."""


class CheckpointError(OnebitError):
    """A checkpoint is missing, malformed, or of a kind that is refused."""


class BaseMismatchError(CheckpointError):
    """A base tensor is not the one a bundle was made against (spec section 7)."""

    id = "OBD-BASE-TENSOR"


class HubError(OnebitError):
    """The Hub cannot be reached, refuses, or sent wrong bytes; the message gives the next step."""


class OutputError(OnebitError):
    """The output exists already, or cannot be written."""


class MissingDependencyError(OnebitError):
    """An optional package is needed; the message gives the command that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        # The parts, not the message, go to the base class: unpickling calls with these.
        super().__init__(package, extra)

    def __str__(self) -> str:
        """Message with the remedy."""
        package, extra = self.args
        return f"{package} is not installed; install it with: pip install 'onebitfmt[{extra}]'"


class FormatError(OnebitError):
    """Bytes that break a requirement of the specification.

    `id` is the requirement, as in spec/obd-v1.md; `where` is the file or the JSON path at fault.
    """

    def __init__(self, id: str, where: str, problem: str) -> None:
        # The parts, not the message, go to the base class: unpickling calls with these.
        super().__init__(id, where, problem)
        self.id = id
        self.where = where
        self.problem = problem

    def __str__(self) -> str:
        """Place, problem and requirement."""
        return f"{self.where}: {self.problem} [{self.id}]"


class UnsupportedError(FormatError):
    """A bundle that needs a newer reader: its version or a feature is unknown here."""


class MissingBundleError(FormatError):
    """No bundle to speak of: the path leads to no folder."""

    def __init__(self, where: str) -> None:
        super().__init__("OBD-DIR-MANIFEST", where, "no such bundle folder")

    def __reduce__(self) -> tuple[type[MissingBundleError], tuple[str]]:
        """Unpickling takes the place alone."""
        return MissingBundleError, (self.where,)
