"""Invalid cases of the manifest's fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from vectors.faults import (
    CONFIG,
    HEX,
    MLP,
    B,
    Invalid,
    N,
    Table,
    W,
    bad,
    drop,
    plain,
    put,
    rename,
    small,
)
from vectors.sealing import Fault
from vectors.valid_bundles import groups, shards
from vectors.valid_bundles import same_and_tied as several


def renamed_norm(name: str) -> Callable[[Any], None]:
    """Renames the tensor of the small bundle, whose base tensor keeps its name."""

    def change(manifest: Any) -> None:
        manifest["tensors"]["norm"]["base"]["name"] = "norm"
        rename("norm", name, "tensors")(manifest)

    return change


def field_cases() -> Iterator[Invalid]:
    """Fields that are missing or unknown."""
    for name, fields, about, start in (
        ("unknown", put("author", "x"), "an unknown field", small),
        ("unknown-base", put("base", "author", "x"), "an unknown field in base", small),
        ("unknown-tensor", put(*N, "note", "x"), "an unknown field in a tensor", small),
        (
            "unknown-term",
            put(*W, "coding", "terms", 0, "rank", 1),
            "an unknown field in a term",
            plain,
        ),
        ("no-fingerprint", put("base", {}), "a base without fingerprint", small),
        ("no-content", drop(*B, "coding", "content"), "exact without content", plain),
        ("no-kind", drop(*N, "coding", "kind"), "a coding without kind", small),
        ("tensor-no-base", drop(*N, "base"), "a tensor without the field base", small),
        ("shard-same", put(*N, "coding", {"kind": "same", "shard": 0}), "same with a shard", small),
        ("base-revision", put("base", "revision", "main"), "a base revision without repo", small),
        (
            "expert-revision",
            put("expert", "revision", "main"),
            "an expert revision without repo",
            small,
        ),
    ):
        yield bad("MAN-FIELD", f"field-{name}", about, Fault(manifest=fields), start)


def type_cases() -> Iterator[Invalid]:
    """Fields of the wrong JSON type."""
    for name, fields, about, start in (
        ("size-bool", put("files", CONFIG, "size", True), "a size that is true", small),
        ("metadata-number", put("metadata", "note", 1), "metadata that is not a string", small),
        ("metadata-null", put("metadata", None), "metadata that is null", small),
        ("groups-object", put("groups", {}), "groups that are an object", small),
        ("files-array", put("files", []), "files that are an array", small),
        ("tensor-null", put(*N, None), "a tensor that is null", small),
        ("tensor-base-string", put(*N, "base", "x"), "a tensor base that is a string", small),
        ("shape-number", put(*N, "shape", 4), "a shape that is a number", small),
        ("shape-bool", put(*N, "shape", [True]), "a shape that holds true", small),
        ("kind-number", put(*N, "coding", "kind", 1), "a kind that is a number", small),
        ("terms-object", put(*W, "coding", "terms", {}), "terms that are an object", plain),
    ):
        yield bad("MAN-TYPE", f"type-{name}", about, Fault(manifest=fields), start)


def value_cases() -> Iterator[Invalid]:
    """Fields of the right type whose value is not allowed."""
    many = [{"kind": "sign", "scale": "matrix"}] * 17
    for name, fields, about, start in (
        ("fingerprint", put("base", "fingerprint", HEX[1:]), "a fingerprint of 63 digits", small),
        ("upper-case", put("base", "fingerprint", HEX.upper()), "a digest in upper case", small),
        ("newline", put("base", "fingerprint", HEX + "\n"), "a digest with a line feed", small),
        ("expert-name", put("expert", "name", ""), "an empty expert name", small),
        ("expert-dtype", put("expert", "dtype", "bf16"), "an unknown dtype", small),
        ("dtype", put(*N, "dtype", "F4"), "an unknown dtype of a tensor", small),
        ("size", put("files", CONFIG, "size", -3), "a negative size", small),
        ("shape-negative", put(*N, "shape", [-4]), "a negative dimension", small),
        ("shape-nine", put(*N, "shape", [4] + [1] * 8), "nine dimensions", small),
        ("shape-huge", put(*N, "shape", [2**40, 2**12]), "a tensor of 2^53 bytes", small),
        ("base-name", put(*N, "base", "name", ""), "an empty name of a base tensor", small),
        ("shape-empty", put(*N, "shape", [0, 2**53 - 1]), "no element, but a huge axis", small),
        (
            "base-shape-empty",
            put(*N, "base", "shape", [2**53 - 1, 0]),
            "a base tensor without element, but with a huge axis",
            small,
        ),
        (
            "base-shape-huge",
            put(*N, "base", "shape", [2**52]),
            "a base tensor of 2^53 bytes",
            small,
        ),
        ("kind", put(*N, "coding", {"kind": "zip"}), "an unknown coding", small),
        ("term-kind", put(*W, "coding", "terms", 0, "kind", "lowrank"), "a reserved term", plain),
        ("scale", put(*W, "coding", "terms", 0, "scale", "tensor"), "an unknown scale", plain),
        ("terms-none", put(*W, "coding", "terms", []), "no terms", plain),
        ("terms-many", put(*W, "coding", "terms", many), "17 terms", plain),
        ("shard", put(*B, "coding", "shard", -1), "a negative shard", plain),
        ("tensor-name", renamed_norm(""), "an empty tensor name", small),
        ("tensor-control", renamed_norm("norm\x7f"), "a control character in a name", small),
        ("tensor-long", renamed_norm("é" * 513), "a tensor name of 1,026 bytes", small),
    ):
        yield bad("MAN-VALUE", f"value-{name}", about, Fault(manifest=fields), start)
    for name in ("MLP", "", "mlp-2", "m" * 33):
        fault = Fault(manifest=put("groups", 0, {"name": name, "files": []}))
        about = f"a group named {name!a}"
        yield bad("MAN-VALUE", f"value-group-{name or 'empty'}", about, fault, small)
    twice = Fault(manifest=lambda m: m["groups"].append({"name": "norm", "files": []}))
    yield bad("MAN-VALUE", "value-group-twice", "a group listed twice", twice, small)


def reference_cases() -> Iterator[Invalid]:
    """Paths that are not safe; groups and files that do not match."""
    for name, path in (
        ("parent", "expert/../config.json"),
        ("absolute", "/expert/config.json"),
        ("dot", "expert/./config.json"),
        ("folder", "expert/"),
        ("backslash", "expert\\config.json"),
        ("drive", "expert/c:config.json"),
        ("control", "expert/config\n.json"),
        ("deep", "expert/" + "a/" * 7 + "b"),
        ("long", "expert/" + "/".join(["a" * 200] * 6)),
        ("nothing", ""),
    ):
        fault = Fault(manifest=rename(CONFIG, path, "files"))
        yield bad("MAN-PATH", f"path-{name}", f"the path {path[:40]!a}", fault, small)
    for name, wanted in (
        ("other", ["up.obd.safetensors"]),
        ("number", ["mlp-00001-of-00001.obd.safetensors"]),
        ("twice", [MLP, MLP]),
        ("extension", ["mlp.safetensors"]),
    ):
        fault = Fault(manifest=put("groups", 0, "files", wanted))
        yield bad("MAN-FILE", f"file-{name}", f"a group with the files {wanted}", fault)
    itself = put("files", "obd.json", {"size": 1, "sha256": HEX})
    loose = Fault(draft=lambda d: d.extra.update({"README.md": b"x"}))
    order = Fault(manifest=lambda m: m["groups"][0]["files"].reverse())
    for name, fault, about, start in (
        ("unlisted", Fault(manifest=drop("files", MLP)), "a group's file is not in files", plain),
        ("manifest", Fault(manifest=itself), "the manifest lists itself", small),
        ("loose", loose, "a file that is in no group and not below expert/", small),
        ("order", order, "shards in the wrong order", shards),
    ):
        yield bad("MAN-FILE", f"file-{name}", about, fault, start)


def entry_cases() -> Iterator[Invalid]:
    """Entries that do not fit their group, their coding or each other."""
    for name, fields, about, start in (
        ("unknown", put(*B, "group", "norm"), "an unknown group", plain),
        ("shard", put(*B, "coding", "shard", 1), "a shard that does not exist", plain),
        ("no-file", put("tensors", "b", "group", "mlp"), "stored in a group without file", groups),
    ):
        yield bad("MAN-GROUP", f"group-{name}", about, Fault(manifest=fields), start)
    for name, fields, about, start in (
        ("missing", put("tensors", "copy", "coding", "to", "no"), "tied to nothing", several),
        ("itself", put("tensors", "copy", "coding", "to", "copy"), "tied to itself", several),
        ("chain", put("tensors", "copy", "coding", "to", "copy of w"), "tied to a tied", several),
        ("shape", put("tensors", "copy", "shape", [1, 2]), "tied to another shape", several),
        ("dtype", put("tensors", "copy", "dtype", "I32"), "tied to another dtype", several),
        ("base", put("tensors", "copy", "base", {"digest": HEX}), "tied, with a base", several),
    ):
        yield bad("MAN-TIED", f"tied-{name}", about, Fault(manifest=fields), start)
    for name, fields, about, start in (
        ("same-new", put("tensors", "embed", "base", None), "same without base", several),
        ("same-shape", put("tensors", "embed", "base", "shape", [4, 3]), "same, reshaped", several),
        ("same-dtype", put("tensors", "embed", "base", "dtype", "F16"), "same, retyped", several),
        ("terms-new", put(*W, "base", None), "terms without base", plain),
        ("terms-shape", put(*W, "base", "shape", [3, 6]), "terms, reshaped", plain),
        ("terms-base", put(*W, "base", "dtype", "I16"), "terms on an integer base", plain),
        ("terms-dtype", put(*W, "dtype", "F64"), "terms of dtype F64", plain),
        ("terms-flat", put(*W, "shape", [18]), "terms of one dimension", plain),
        ("terms-empty", put(*W, "shape", [0, 9]), "terms without an element", plain),
        ("coded-wider", put(*B, "coding", "coded", "F32"), "coded in a wider dtype", plain),
        ("coded-equal", put(*B, "coding", "coded", "BF16"), "coded in its own dtype", plain),
        ("coded-integer", put(*B, "coding", "coded", "I16"), "coded as integers", plain),
        ("exact-dimensions", put(*B, "base", "shape", [1, 4]), "another number of axes", plain),
        ("exact-base", put(*B, "base", "dtype", "I16"), "a float on an integer base", plain),
        ("exact-f64", put(*B, "base", "dtype", "F64"), "a prediction from F64", plain),
    ):
        yield bad("MAN-CODING", f"coding-{name}", about, Fault(manifest=fields), start)


CASES: Final[tuple[Table, ...]] = (
    field_cases,
    type_cases,
    value_cases,
    reference_cases,
    entry_cases,
)
