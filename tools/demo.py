"""The main job on a small real model family: `make demo`.

Converts three experts of one base with the presets, inspects and verifies them, measures storage,
restores one expert, and asks it its task before and after. Everything is written under `.demo/`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import numpy as np
from family import FAMILY, exact_match, prompts
from transformers.utils import logging

from onebitfmt import Bundle, Checkpoint

ROOT: Final = Path(__file__).resolve().parents[1]
OUT: Final = ROOT / ".demo"
EXPERTS: Final = ("chat", "math", "code")
RESTORED: Final = "math"


def obd(*arguments: str | Path) -> None:
    """Run a command as a user would, and show it."""
    words = [
        str(a.relative_to(ROOT)) if isinstance(a, Path) and a.is_absolute() else str(a)
        for a in arguments
    ]
    print(f"\n$ obd {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "onebitfmt", *words], cwd=ROOT, check=True)


def main() -> None:
    """Run the demo."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    base = FAMILY / "base"
    bundles = [OUT / f"{name}.obd" for name in EXPERTS]
    for name, bundle in zip(EXPERTS, bundles, strict=True):
        obd("convert", base, FAMILY / name, "-o", bundle, "--preset", name)
    obd("inspect", OUT / f"{RESTORED}.obd")
    for bundle in bundles:
        obd("verify", bundle, "--base", base)
    obd("storage", base, *bundles)
    restored = OUT / RESTORED
    obd("restore", base, OUT / f"{RESTORED}.obd", "-o", restored)
    compare(FAMILY / RESTORED, restored, OUT / f"{RESTORED}.obd")
    accuracy(base, restored)


def compare(expert: Path, restored: Path, bundle: Path) -> None:
    """Say for each layer group how many tensors are bit for bit the expert's."""
    before, after = Checkpoint.open(expert), Checkpoint.open(restored)
    manifest = Bundle.open(bundle).manifest
    print(f"\n{restored.relative_to(ROOT)} against the original expert, bit for bit:")
    for group in manifest.groups:
        names = [n for n, entry in manifest.tensors.items() if entry.group == group.name]
        equal = sum(np.array_equal(before.bits(n), after.bits(n)) for n in names)
        print(f"  {group.name:10} {equal} of {len(names)} tensors identical")


def accuracy(base: Path, restored: Path) -> None:
    """Exact match of the base, the expert and the restored expert on the expert's own task."""
    logging.disable_progress_bar()
    asked = prompts(RESTORED, "test")
    print(f"\nexact match on {len(asked)} held-out prompts of {RESTORED}:")
    for label, folder in (
        ("base model", base),
        ("original expert", FAMILY / RESTORED),
        ("restored expert", restored),
    ):
        print(f"  {label:16} {exact_match(folder, asked):5.1f} %", flush=True)


if __name__ == "__main__":
    main()
