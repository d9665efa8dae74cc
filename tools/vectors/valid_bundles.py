"""Valid cases of the manifest, the directory and the layout of group files."""

from __future__ import annotations

from typing import Final

from vectors.coding import pack
from vectors.drafts import Case, Draft, Term
from vectors.numbers import floats
from vectors.samples import nudged, ramp, sign
from vectors.sealing import fingerprint


def worked_example(d: Draft) -> None:
    """The bundle of appendix B: one one-bit matrix, one exact vector."""
    weights = floats("BF16", [2, 9], [1.0] * 9 + [-2.0] * 9)
    plus = [c == "+" for c in "+-++---+-" + "----+++++"]
    d.terms("up.weight", weights, [Term(kind="matrix", plus=plus, scales=[("F16", [0.25])])])
    bias = floats("BF16", [4], [4.0, 1.0, 2.0, 3.0])
    d.exact("up.bias", nudged(bias, [2, 0, 1, -1]), bias, modes=[[pack(2)]], group="mlp")


def empty(d: Draft) -> None:
    """A bundle of an expert without tensors."""


def same_and_tied(d: Draft) -> None:
    """Tensors equal to the base, also under another name; tensors tied to others."""
    d.same("embed", ramp("BF16", [3, 4]), group="embedding")
    d.same("renamed", ramp("F16", [5]), base_name="original")
    d.tied("head", "embed", group="head")
    d.exact("new", floats("F32", [2], [1.0, 2.0]))
    d.tied("copy", "new")
    d.terms("w", ramp("BF16", [2, 3]), [sign("row", [2, 3])])
    d.tied("copy of w", "w")


def renamed_base(d: Draft) -> None:
    """An exact tensor whose base has another name, dtype and shape."""
    d.exact("a", ramp("BF16", [3, 3]), ramp("F32", [2, 4]), base_name="model.a")


def shards(d: Draft) -> None:
    """A group in three files; tensors name theirs, and one file has none."""
    for index in (0, 2):
        d.exact(f"{index}.bias", ramp("BF16", [3], index), group="mlp", shard=index)
        d.terms(f"{index}.weight", ramp("BF16", [2, 3]), [sign("row", [2, 3])], shard=index)
    d.same("norm", ramp("BF16", [3]), group="mlp")


def padding(d: Draft) -> None:
    """One, two and three bytes of /padding, before F16 and before F32 scales."""
    for group, width, dtype in (("attention", 1, "F16"), ("mlp", 2, "F32"), ("other", 1, "F32")):
        shape = [1, 8 * width]
        d.terms(f"{group}.weight", ramp("BF16", shape), [sign("row", shape, 1, dtype)], group=group)


def more_padding(d: Draft) -> None:
    """Padding of seven bytes, more than is needed, which a reader accepts."""
    d.terms("w", ramp("BF16", [1, 8]), [sign("matrix", [1, 8])])
    d.gap = 6


def any_order(d: Draft) -> None:
    """A group file with scales first: a reader accepts any order."""
    worked_example(d)
    d.layout = "scales first"


def metadata(d: Draft) -> None:
    """Metadata, a source for base and expert, names that need escapes and names in raw UTF-8."""
    d.head["metadata"] = {"": "", 'quote"back\\slash': "\b\t\n\f\r\x00\x1f\x7f\u2028é漢😀"}
    d.head["expert"] = {
        "name": "math",
        "dtype": "F32",
        "repo": "ns/math",
        "revision": "main",
        "license": "apache-2.0",
    }
    d.exact("größe/漢 😀\u2028", floats("BF16", [2], [1.0, 2.0]), floats("BF16", [2], [1.0, 3.0]))
    base = {"fingerprint": fingerprint(d.base), "repo": "ns/base", "revision": "0" * 40}
    d.head["base"] = base


def minor_version(d: Draft) -> None:
    """A later minor version that requires nothing: an older reader can read it."""
    worked_example(d)
    d.head["version"] = "1.10000000000"


def expert_files(d: Draft) -> None:
    """Files under expert/, one of them empty, one eight components deep."""
    worked_example(d)
    d.extra["expert/config.json"] = b'{"model_type":"llama"}\n'
    d.extra["expert/empty.txt"] = b""
    d.extra["expert/1/2/3/4/5/6/deep.txt"] = b"deep\n"
    d.extra["expert/with space.txt"] = b"\x00\xff"


def groups(d: Draft) -> None:
    """All well-known groups, an own one, groups without a file and without a tensor."""
    for name in ("attention", "mlp", "embedding", "head", "norm", "router", "other", "own_2"):
        d.groups[name] = 0
    d.same("a", ramp("BF16", [3]), group="attention")
    d.exact("b", ramp("BF16", [3]), group="own_2")


def redundant_fields(d: Draft) -> None:
    """Optional fields that say what is so anyway: a reader accepts them."""
    worked_example(d)
    entry = d.tensors["up.bias"]
    assert entry.base is not None
    entry.base.update({"name": "up.bias", "dtype": "BF16", "shape": [4]})
    entry.coding["shard"] = 0


CASES: Final[tuple[Case, ...]] = (
    worked_example,
    empty,
    same_and_tied,
    renamed_base,
    shards,
    padding,
    more_padding,
    any_order,
    metadata,
    minor_version,
    expert_files,
    groups,
    redundant_fields,
)
