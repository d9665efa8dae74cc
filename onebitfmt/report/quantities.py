"""Bytes and shares as people read them: on the terminal and in model cards alike."""

from __future__ import annotations


def size(nbytes: float) -> str:
    """A number of bytes for people: 1.23 GB, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 1000 or unit == "GB":
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1000
    raise AssertionError


def percent(part: float, whole: float) -> str:
    """part / whole in percent, or a dash where there is no whole."""
    return f"{100 * part / whole:.2f} %" if whole else "-"


def count(number: int, noun: str) -> str:
    """So many of something: 1 file, 2 files."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def rounded(text: str) -> str:
    """A decimal number from a file, to four places; other text as it is."""
    try:
        return f"{float(text):.4f}"
    except ValueError:
        return text
