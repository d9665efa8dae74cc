"""Who may do what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["write", "read"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """The holder of a token. One who is no member of the namespaces sees public repositories."""

    name: str
    role: Role = "write"
    member: bool = True

    @property
    def may_write(self) -> bool:
        """Whether pushes are accepted."""
        return self.member and self.role == "write"

    def whoami(self) -> dict[str, Any]:
        """What whoami-v2 answers."""
        orgs = [{"type": "org", "name": "acme", "roleInOrg": "admin"}] if self.member else []
        return {
            "type": "user",
            "id": "0",
            "name": self.name,
            "fullname": self.name.title(),
            "orgs": orgs,
            "auth": {
                "type": "access_token",
                "accessToken": {"displayName": "test", "role": self.role},
            },
        }
