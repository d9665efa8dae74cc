"""All cases, written below a folder."""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from vectors import (
    invalid_codecs,
    invalid_files,
    invalid_json,
    invalid_manifest,
    valid_bundles,
    valid_exact,
    valid_terms,
)
from vectors.drafts import Case, Draft
from vectors.faults import Invalid
from vectors.numbers import Tensor
from vectors.sealing import Fault, safetensors, seal

KINDS: Final = {
    "OBD-MAN-VERSION": "unsupported",
    "OBD-MAN-REQUIRES": "unsupported",
    "OBD-BASE-TENSOR": "base",
}


def write(folder: Path, files: dict[str, bytes], links: Iterable[tuple[str, str]] = ()) -> None:
    """Writes files and links below a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for name, target in links:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)


def plain_file(tensors: dict[str, Tensor]) -> bytes:
    """An ordinary safetensors file."""
    rows = [(name, t.dtype, t.shape, t.data) for name, t in sorted(tensors.items())]
    return safetensors(rows, metadata=None, align=8)


def case_json(**fields: str) -> bytes:
    """The description of a case."""
    return json.dumps(fields, indent=2, ensure_ascii=False).encode() + b"\n"


def write_valid(folder: Path, build: Case) -> None:
    """One valid case."""
    draft = Draft()
    build(draft)
    expected = {name: entry.expert for name, entry in draft.tensors.items()}
    tree = seal(draft, Fault())
    write(folder / "bundle.obd", tree)
    about = " ".join((build.__doc__ or "").split())
    write(
        folder,
        {
            "base.safetensors": plain_file(draft.base),
            "expected.safetensors": plain_file(expected),
            "case.json": case_json(about=about),
        },
    )


def write_invalid(folder: Path, case: Invalid) -> None:
    """One invalid case."""
    draft = Draft()
    case.start(draft)
    base = copy.copy(draft.base)
    tree = seal(draft, case.fault)
    case.fault.base(base)
    write(folder / "bundle.obd", tree, case.fault.links)
    error = KINDS.get(case.id, "format")
    write(
        folder,
        {
            "base.safetensors": case.fault.base_file(plain_file(base)),
            "case.json": case_json(about=case.about, id=case.id, error=error),
        },
    )


def make(root: Path) -> tuple[int, int]:
    """Writes all vectors into a folder; returns how many are valid and how many are not."""
    builds = [*valid_terms.CASES, *valid_exact.CASES, *valid_bundles.CASES]
    for build in builds:
        write_valid(root / "valid" / build.__name__.replace("_", "-"), build)
    areas = (invalid_json, invalid_manifest, invalid_files, invalid_codecs)
    cases = [case for area in areas for table in area.CASES for case in table()]
    folders = {case.name: root / "invalid" / case.name for case in cases}
    assert len(folders) == len(cases), Counter(case.name for case in cases).most_common(3)
    for case in cases:
        write_invalid(folders[case.name], case)
    return len(builds), len(cases)


def listing(root: Path) -> dict[str, bytes]:
    """Every file and link below a folder, with its bytes or its target."""
    found = {}
    for folder, folders, names in os.walk(root):
        for name in folders + names:
            path = Path(folder) / name
            if path.is_symlink():
                found[path.relative_to(root).as_posix()] = b"-> " + os.readlink(path).encode()
            elif path.is_file():
                found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found
