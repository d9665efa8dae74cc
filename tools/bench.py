"""Throughput, memory and size, each as a ratio to a named reference in the same run: `make bench`.

Lone seconds say little on a shared machine. Kernels are measured on arrays far larger than
the caches; conversion end to end on files in the page cache, against `cat` of the same files.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onebitfmt import Checkpoint, ConvertOptions, SignOptions, convert, restore
from onebitfmt.codecs import exact, floats, sign
from onebitfmt.format.safetensors import layout
from onebitfmt.kernels import cpu
from onebitfmt.parallel import Workers

Array = NDArray[Any]

REPEATS: Final = 5
ROWS, COLUMNS = 4096, 4096
THREADS: Final = 2


def median_seconds(function: Callable[[], object]) -> float:
    """The median wall time of a few runs, after one that does not count."""
    function()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return sorted(times)[REPEATS // 2]


def pair(matrices: int, relative: float = 0.025) -> tuple[Array, Array]:
    """A base and a fine-tune in BF16: N(0, 0.02) and a Gaussian task vector of relative size."""
    rng = np.random.default_rng(0)
    base = np.empty((matrices, ROWS, COLUMNS), np.uint16)
    expert = np.empty_like(base)
    weights = rng.standard_normal((ROWS, COLUMNS), np.float32) * np.float32(0.02)
    noise = rng.standard_normal((ROWS, COLUMNS), np.float32) * np.float32(0.02 * relative)
    for k in range(matrices):
        # Rolled copies: random enough, and made in a moment.
        w = np.roll(weights, 97 * k)
        base[k] = floats.from_float32(w, "BF16")
        expert[k] = floats.from_float32(w + np.roll(noise, 31 * k), "BF16")
    return base, expert


def both_threads(function: Callable[[Array], object], *arrays: Array) -> None:
    """Run a function on two halves of each array at once."""
    with ThreadPoolExecutor(THREADS) as pool:
        halves = [h for a in arrays for h in np.array_split(a.reshape(-1), THREADS)]
        list(pool.map(function, halves))


def bench_signs(base: Array, expert: Array) -> None:
    """Sign encoding against reading the same bytes; rebuilding against copying."""
    nbytes = base.nbytes + expert.nbytes
    words = base.view(np.uint64), expert.view(np.uint64)
    read = median_seconds(lambda: both_threads(np.bitwise_or.reduce, *words))
    print(f"read, {THREADS} threads: {nbytes / read / 1e9:.1f} GB/s")
    with Workers(THREADS) as workers:
        for kind in ("matrix", "row", "rank1"):
            options = SignOptions(scale=kind)
            dtypes = ("BF16", "BF16")
            spent = median_seconds(partial(sign.encode, base, expert, dtypes, options, workers))
            speed = f"{nbytes / spent / 1e9:.1f} GB/s"
            print(f"sign encode, {kind:6}: {read / spent:.2f} of read, {speed}")
        coded = sign.encode(base, expert, ("BF16", "BF16"), SignOptions(), workers)
    assert coded is not None
    out = np.empty_like(base)
    copy = median_seconds(lambda: both_threads_copy(base, out))
    rebuild = median_seconds(lambda: rebuild_all(base, coded[0], out))
    print(f"rebuild, rank1: {copy / rebuild:.2f} of memcpy, {base.nbytes / rebuild / 1e9:.1f} GB/s")


def both_threads_copy(source: Array, target: Array) -> None:
    """Copy one array to another, half a thread."""
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda k: np.copyto(target[k], source[k]), range(source.shape[0])))


def rebuild_all(base: Array, planes: Any, out: Array) -> None:
    """Rebuild every matrix of a stack into `out`, one matrix a task."""
    dtypes = (0, 0)

    def run(k: int) -> None:
        found = sign.kernel_planes(planes, k, 0, ROWS, COLUMNS)
        cpu.rebuild_rows(base[k], dtypes, found, out[k])

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(run, range(base.shape[0])))


def bench_exact() -> None:
    """Exact coding on one core, in MB/s of tensor bytes."""
    for relative in (0.005, 0.025, 0.1):
        base, expert = (a.reshape(4, exact.CHUNK, -1)[:, :, 0] for a in pair(1, relative))
        base, expert = np.ascontiguousarray(base), np.ascontiguousarray(expert)
        chunks = encode_chunks(expert, base)
        encode = median_seconds(partial(encode_chunks, expert, base))
        decode = median_seconds(partial(decode_chunks, chunks, base))
        bits = 8 * sum(map(len, chunks)) / base.size
        print(
            f"exact, relative task vector {relative}: {bits:.2f} bits a weight, one core: "
            f"encode {base.nbytes / encode / 1e6:.0f}, decode {base.nbytes / decode / 1e6:.0f} MB/s"
        )


def encode_chunks(expert: Array, base: Array) -> list[bytes]:
    """Code rows of BF16 weights, a chunk each."""
    return [exact.encode_chunk(e, b, "BF16") for e, b in zip(expert, base, strict=True)]


def decode_chunks(chunks: list[bytes], base: Array) -> list[Array]:
    """The inverse of `encode_chunks`."""
    return [exact.decode_chunk(c, b, "BF16", "bench") for c, b in zip(chunks, base, strict=True)]


def write_pair(folder: Path, gigabytes: float) -> tuple[Path, Path]:
    """Two checkpoints of this size together, of Llama-like names, in BF16."""
    per_matrix = 2 * ROWS * COLUMNS
    count = max(7, round(gigabytes * 1e9 / 2 / per_matrix))
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
             "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
    names = [f"model.layers.{k // 7}.{parts[k % 7]}.weight" for k in range(count)]
    base, expert = pair(7)
    paths = (folder / "base.safetensors", folder / "expert.safetensors")
    for path, values in zip(paths, (base, expert), strict=True):
        _, header = layout(dict.fromkeys(names, ("BF16", (ROWS, COLUMNS))), {"format": "pt"})
        with path.open("wb") as f:
            f.write(header)
            for k in range(count):
                f.write(values[k % 7].data.cast("B"))
    return paths


def cat(*paths: Path) -> float:
    """Seconds that `cat` takes to read files from the page cache."""
    return median_seconds(
        lambda: subprocess.run(["cat", *map(str, paths)], stdout=subprocess.DEVNULL, check=True)
    )


def bench_convert(gigabytes: float) -> None:
    """Whole conversions against `cat` of both files, and restoring against `cp`."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        folder = Path(name)
        paths = write_pair(folder, gigabytes)
        nbytes = sum(p.stat().st_size for p in paths)
        reference = cat(*paths)
        print(f"cat of both files, {nbytes / 1e9:.2f} GB: {nbytes / reference / 1e9:.1f} GB/s")
        base, expert = map(Checkpoint.open, paths)
        for preset, scale in (("linear", "matrix"), ("linear", "rank1"), ("math", "rank1"),
                              ("none", "rank1")):  # fmt: skip
            options = ConvertOptions(preset=preset, sign=SignOptions(scale=scale))
            target = folder / f"{preset}.obd"
            start = time.perf_counter()
            convert(base, expert, target, options, jobs=THREADS, overwrite=True)
            spent = time.perf_counter() - start
            print(
                f"convert, preset {preset:6} {scale:6}: {reference / spent:.2f} of cat, "
                f"{nbytes / spent / 1e9:.2f} GB/s"
            )
        copy = median_seconds(
            lambda: subprocess.run(["cp", str(paths[1]), str(folder / "copy")], check=True)
        )
        for preset in ("linear", "none"):
            start = time.perf_counter()
            restore(base, folder / f"{preset}.obd", folder / "out", jobs=THREADS, overwrite=True)
            spent = time.perf_counter() - start
            print(f"restore, preset {preset:6}: {copy / spent:.2f} of cp (which does not sync)")
        for preset in ("linear", "none"):
            print(f"peak extra memory, preset {preset}: {peak_memory(paths, folder, preset)}")


def peak_memory(paths: tuple[Path, Path], folder: Path, preset: str) -> str:
    """What a conversion in a fresh process takes beyond its imports."""
    arguments = ([str(p) for p in paths], str(folder), preset)
    command = [sys.executable, "-c", f"import bench; bench.report_memory(*{arguments!r})"]
    folder_of_this = str(Path(__file__).parent)
    return subprocess.run(
        command, cwd=folder_of_this, check=True, capture_output=True, text=True
    ).stdout.strip()


def report_memory(paths: list[str], folder: str, preset: str) -> None:
    """Convert once small (to compile and load everything), then large, watching memory."""
    base, expert = map(Checkpoint.open, paths)
    options = ConvertOptions(preset=preset)
    before = memory("RssAnon"), memory("VmRSS")
    peak = [0, 0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], memory("RssAnon"))
            peak[1] = max(peak[1], memory("VmRSS"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    convert(base, expert, Path(folder) / "memory.obd", options, jobs=THREADS, overwrite=True)
    done.set()
    watcher.join()
    anonymous, resident = ((p - b) / 1e6 for p, b in zip(peak, before, strict=True))
    print(f"{anonymous:.0f} MB allocated, {resident:.0f} MB resident with mapped file pages")


def memory(field: str) -> int:
    """A field of this process's memory status, in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Run every benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the synthetic pair")
    arguments = parser.parse_args()
    bench_exact()
    base, expert = pair(24)
    bench_signs(base, expert)
    del base, expert
    bench_convert(arguments.gigabytes)


if __name__ == "__main__":
    main()
