"""Writes the test vectors of the specification, `spec/vectors/`.

It shares no code with the library or the reference decoder, so that the three cannot be wrong
together: bytes come from `struct`, floating point from Python's own binary64. Frames are built by
hand (raw and RLE blocks) because a compressor's bytes change with its version; the few frames
that hold real Huffman or sequence data are literals, checked here by decompression.

Run `python tools/make_vectors.py` to write, `--check` to compare with what is committed. The cases
are in the package `vectors` beside this file.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from vectors.writing import listing, make

VECTORS: Final = Path(__file__).resolve().parent.parent / "spec" / "vectors"


def check() -> int:
    """Compares fresh vectors with the committed ones."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        fresh, committed = listing(Path(folder)), listing(VECTORS)
    differing = sorted(
        name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name)
    )
    for name in differing:
        print(f"differs: {name}", file=sys.stderr)
    return 1 if differing or not committed else 0


def main() -> int:
    """Writes or checks the vectors."""
    parser = argparse.ArgumentParser(description="Write the test vectors of the specification.")
    parser.add_argument("--check", action="store_true", help="compare with what is committed")
    if parser.parse_args().check:
        return check()
    shutil.rmtree(VECTORS, ignore_errors=True)
    valid, invalid = make(VECTORS)
    size = sum(len(data) for data in listing(VECTORS).values())
    print(f"{valid} valid and {invalid} invalid cases, {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
