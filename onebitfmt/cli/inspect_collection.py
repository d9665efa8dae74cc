"""What `obd inspect` shows of a collection, from its config.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebitfmt.cli.console import percent, print_json, say, size, table
from onebitfmt.report.quantities import rounded

if TYPE_CHECKING:
    from onebitfmt.collection_config import Config, ExpertEntry, ExpertGroup

_GROUPS = ("group", "full", "stored", "ratio", "one-bit", "rel. sq. error", "tensors by coding")
_EXPERTS = ("expert", "dtype", "full", "stored", "ratio", "one-bit", "licence", "made from")


def show(
    config: Config, path: Path, *, as_json: bool, origin: dict[str, str] | None = None
) -> None:
    """Print a collection; `origin` has its `repo` and `commit` where it is on the Hub."""
    if as_json:
        print_json({"path": str(path), **(origin or {}), **_as_json(config)})
        return
    title = f"{origin['repo']}@{origin['commit']}" if origin else str(path)
    experts = sorted(config.experts.items())
    say(f"base    {config.base}")
    router = "none" if config.router is None else size(config.router.nbytes)
    say(f"router  {router}")
    rows = [_group_row(name, group) for name, entry in experts for group in entry.groups]
    table(title, _GROUPS, rows)
    say()
    full, stored = (sum(getattr(e, f) for _, e in experts) for f in ("full", "nbytes"))
    total = ["total", "", size(full), size(stored), percent(stored, full), "", "", ""]
    table("by expert", _EXPERTS, [*(_expert_row(name, entry) for name, entry in experts), total])
    say(
        "full: tensors of the experts' own checkpoints. stored: bytes on disk; of an expert, with "
        "manifest and small files."
    )


def _group_row(expert: str, group: ExpertGroup) -> list[str]:
    error = group.relative_squared_error
    return [
        f"{expert}: {group.name}",
        size(group.full),
        size(group.nbytes),
        percent(group.nbytes, group.full),
        percent(group.onebit, group.elements),
        rounded(error) if error else ("-" if group.onebit else "exact"),
        ", ".join(f"{count} {coding}" for coding, count in group.codings.items()),
    ]


def _expert_row(name: str, entry: ExpertEntry) -> list[str]:
    onebit = sum(group.onebit for group in entry.groups)
    return [
        name,
        entry.dtype,
        size(entry.full),
        size(entry.nbytes),
        percent(entry.nbytes, entry.full),
        percent(onebit, sum(group.elements for group in entry.groups)),
        entry.license or "-",
        _source(entry),
    ]


def _source(entry: ExpertEntry) -> str:
    if entry.repo is None:
        return "-"
    return f"{entry.repo}@{entry.revision}" if entry.revision else entry.repo


def _as_json(config: Config) -> dict[str, Any]:
    from dataclasses import asdict

    router = config.router
    return {
        "base": asdict(config.base),
        "experts": {name: _expert_json(entry) for name, entry in sorted(config.experts.items())},
        "router": {"sha256": router.sha256, "bytes": router.nbytes} if router else None,
        "recipe": config.recipe,
    }


def _expert_json(entry: ExpertEntry) -> dict[str, Any]:
    return {
        "path": entry.path,
        "sha256": entry.sha256,
        "dtype": entry.dtype,
        "repo": entry.repo,
        "revision": entry.revision,
        "license": entry.license,
        "full_bytes": entry.full,
        "stored_bytes": entry.nbytes,
        "groups": [
            {
                "name": group.name,
                "full": group.full,
                "stored": group.nbytes,
                "elements": group.elements,
                "onebit": group.onebit,
                "codings": dict(group.codings),
                "relative_squared_error": group.relative_squared_error,
            }
            for group in entry.groups
        ],
    }
