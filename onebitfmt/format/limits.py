"""Every bound of the format in one table (spec section 10)."""

from __future__ import annotations

from typing import Final

MAX_MANIFEST_BYTES: Final = 64 << 20
MAX_HEADER_BYTES: Final = 100_000_000
MAX_JSON_DEPTH: Final = 16
MAX_INTEGER: Final = 2**53 - 1
MAX_NAME_BYTES: Final = 1024
MAX_PATH_BYTES: Final = 1024
MAX_PATH_COMPONENTS: Final = 8
MAX_DIMENSIONS: Final = 8
MAX_TERMS: Final = 16
