"""PLANEs: raw bytes and zstd frames, built by hand or frozen (spec 6.2.6)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import zstandard

from vectors.numbers import skewed

FROZEN_PLANES: Final = {
    "huffman": skewed(200, 11),
    "huffman-4": skewed(1100, 12),
    "sequences": [(i * i // 7 + i % 5) % 11 for i in range(40)] * 9,
}

# Frames of a real compressor: one Huffman stream; four with a content checksum; sequences.
FROZEN: Final = {
    "huffman": (
        "28b52ffd20c8550400828c21105018dd038891d5274f7ef42975444a014557319d69445ce14965948029ab1a"
        "f21ad3a0c1c7d0041d6f43d8f15beec955bd6c817c0597e5c69472c2ae05134aeb1d9c6176e7f1b2a877f9d5"
        "5cab7d383a79a48ce4fa19d68111f7ce24b1b8334a5797e2284d1b3407c8f3675df5d04e8e20098e377e8730"
        "adc50542abbf2ea4545c89103f0500"
    ),
    "huffman-4": (
        "28b52ffd644c036d1500ca44a00a12208a18550f454b97a0b2ac229394aaaa9401a300a300a400ba96815f21"
        "2cf954dcf6f6c49596aa9113fe63f61eb783fd4a793d030b71731e62197c6dce497a391d3b86e81e4c56e18f"
        "dec0a45e1570e3745a4808e113a8fe151558fe6e033b06596eca4dbe48cc906e4d1c26c0106b439f32b623fb"
        "2ab736e02cc14bb64f9c56cf4120de9c0740a907cfc165e3033dcef22c04d8bb63283babb5ba7f7bb9758dd2"
        "223daf2e201d04c279fe8e91d0d3cdc08d3e6c1ae981a0c54b888aa077d6b2079ab0dbf9ea7ca3141c979808"
        "710d1e9fda4491cc530884dc7b202ee3ac3a521bc3e52bb3d1917c3ded2a06f4f1daf8fed9d40dc6a9d242d3"
        "15505b1aa9b9e275ede05b7a8e3b5e4d95843f47cec6900fdafad5017205138949839dc692c3f38009643976"
        "d2de4acb855e810e8f58226ab912d29950e230a036d6bff31844514c1ec536ccf1d3fb3f74a8bf2a58858d99"
        "dc8c8def35cfd681bf2c8395014a42cbe27116d785069210253fe4d00789a489c45d1e7187559f950edba1cf"
        "31fb41ae242f49433c3d16ef1bc22df44042a2fa1729e78001489f0d65e8d8b5d490046fd3ca2e8522620d09"
        "dfbc95b848118e43d586fb822ddf12a2b7c84e073b296e606ac5abd0f565b262b0ca0825f6645f78cc5c3e41"
        "a2259e334d501ef24d2ed40a45046902b50e3f40eae30377dc1e94c13cca590c551e338e16770c4cc313d373"
        "5078e9a86a395307bb7bbe82c81b307752970256cedaa2b7c44ab94e3c75c85a4904a72db9bc7731188e6973"
        "fd83045de3ed4cee1bd666ff4a71f92dcb72f59bc3012dfc7afa675d13ae39041020c2340ae410f300126182"
        "eea15638ca2857444855f871610fe25f7971e3c938a3ef4127e516961ae1c21ed5b0562888d12c7342cb6e03"
        "db27b95f8152ca6b5c64530b21e21a2908dc2e67f0c8986f66d7ee7e6397de70040300cfa50e1f"
    ),
    "sequences": (
        "28b52ffd6068000d010082c205892211221102d37fb232d1f1bc1ad4f3af26384b08610a0100e859aa2a03"
    ),
}

Coder = Callable[[bytes], bytes]  # the bytes of a plane -> PLANE


def u32(value: int) -> bytes:
    """Four little-endian bytes."""
    return struct.pack("<I", value)


def raw(plane: bytes) -> bytes:
    """A raw PLANE."""
    return u32(len(plane) | 1 << 31) + plane


def framed(frame: bytes) -> bytes:
    """A PLANE that is a frame."""
    return u32(len(frame)) + frame


def blocks(plane: bytes) -> bytes:
    """RFC 8878 section 3.1.1.2: RLE blocks where a piece is constant, raw blocks elsewhere."""
    result = bytearray()
    for start in range(0, len(plane), 2**17):
        piece = plane[start : start + 2**17]
        constant = len(set(piece)) == 1 and len(piece) > 1
        head = (start + len(piece) == len(plane)) | constant << 1 | len(piece) << 3
        result += head.to_bytes(3, "little") + (piece[:1] if constant else piece)
    return bytes(result)


def frame(plane: bytes, *, size: int | None = None, dictionary: bytes = b"") -> bytes:
    """A single-segment frame (RFC 8878 section 3.1.1.1) with its content size in four bytes."""
    descriptor = 0b1010_0000 | {0: 0, 1: 1, 2: 2, 4: 3}[len(dictionary)]
    size = len(plane) if size is None else size
    return struct.pack("<IB", 0xFD2FB528, descriptor) + dictionary + u32(size) + blocks(plane)


def windowed(plane: bytes) -> bytes:
    """A frame with a window descriptor (1 KiB) instead of a single segment."""
    assert len(plane) <= 1024
    return struct.pack("<IBB", 0xFD2FB528, 0b1000_0000, 0) + u32(len(plane)) + blocks(plane)


def zstd(plane: bytes) -> bytes:
    """A PLANE that is a frame built by hand."""
    return framed(frame(plane))


def frozen(name: str) -> Coder:
    """A PLANE that is one of the literal frames; it must hold just this plane."""

    def coder(plane: bytes) -> bytes:
        literal = bytes.fromhex(FROZEN[name])
        assert zstandard.ZstdDecompressor().decompress(literal) == plane, name
        return framed(literal)

    return coder
