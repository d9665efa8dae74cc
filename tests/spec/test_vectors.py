"""Every implementation against every vector, and the specification against both."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import blake3
import obd_reference as reference
import pytest

from tests.spec.implementations import IMPLEMENTATIONS, Check, Rebuilt

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "spec" / "vectors"
SPEC = (ROOT / "spec" / "obd-v1.md").read_text(encoding="utf-8")
VALID = sorted((VECTORS / "valid").glob("*"))
INVALID = sorted((VECTORS / "invalid").glob("*"))
ID = r"\[(OBD-[A-Z0-9-]+)\]"

each_implementation = pytest.mark.parametrize(
    "check", IMPLEMENTATIONS.values(), ids=list(IMPLEMENTATIONS)
)


def about(case: Path) -> dict[str, str]:
    fields: dict[str, str] = json.loads((case / "case.json").read_text(encoding="utf-8"))
    return fields


def expected(case: Path) -> Rebuilt:
    data = (case / "expected.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:start])
    return {
        name: (
            entry["dtype"],
            tuple(entry["shape"]),
            data[start:][slice(*entry["data_offsets"])],
        )
        for name, entry in header.items()
    }


def names(cases: list[Path]) -> list[str]:
    return [case.name for case in cases]


@each_implementation
@pytest.mark.parametrize("case", VALID, ids=names(VALID))
def test_valid_vector_is_rebuilt_exactly(case: Path, check: Check) -> None:
    assert check(case) == expected(case), about(case)["about"]


@each_implementation
@pytest.mark.parametrize("case", INVALID, ids=names(INVALID))
def test_invalid_vector_is_refused_by_its_id(case: Path, check: Check) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011  (each implementation has its own type)
        check(case)
    found = getattr(caught.value, "id", None)
    assert found == about(case)["id"], f"{about(case)['about']}: {caught.value!r}"


def test_vectors_are_there_and_most_are_invalid() -> None:
    assert VALID
    assert len(INVALID) >= 2 * len(VALID)


def test_every_case_is_complete() -> None:
    for case in VALID + INVALID:
        assert (case / "bundle.obd").is_dir(), case
        assert (case / "base.safetensors").is_file(), case
        assert (case / "expected.safetensors").is_file() == (case in VALID), case
        fields = {"about"} if case in VALID else {"about", "id", "error"}
        assert set(about(case)) == fields, case
        assert about(case).get("error", "format") in ("format", "unsupported", "base"), case


def requirements() -> set[str]:
    lines = [line for line in SPEC.splitlines() if "MUST" in line and "RFC 2119" not in line]
    without = [line for line in lines if not re.search(ID, line)]
    assert lines
    assert not without, f"a MUST without an id: {without}"
    return {id for line in lines for id in re.findall(ID, line)}


def test_every_requirement_has_an_invalid_vector() -> None:
    assert requirements() - {about(case)["id"] for case in INVALID} == set()


def test_every_vector_cites_a_requirement() -> None:
    assert {about(case)["id"] for case in INVALID} - requirements() == set()


def test_every_id_of_the_specification_is_a_requirement() -> None:
    assert set(re.findall(ID, SPEC)) == requirements()


def test_the_reference_raises_only_ids_of_the_specification() -> None:
    source = (ROOT / "spec" / "obd_reference.py").read_text(encoding="utf-8")
    assert set(re.findall(r'"(OBD-[A-Z0-9-]+)"', source)) == requirements()


def test_appendix_c_counts_the_vectors_of_every_requirement() -> None:
    table = dict(re.findall(rf"^\| {ID} \|.*\| ([0-9]+) \|$", SPEC, re.MULTILINE))
    counted = [about(case)["id"] for case in INVALID]
    assert table == {id: str(counted.count(id)) for id in requirements()}


def test_appendix_c_lists_the_valid_vectors() -> None:
    appendix = SPEC[SPEC.index("\n## C ") :]
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", appendix, re.MULTILINE) == names(VALID)


def test_links_inside_the_specification_lead_somewhere() -> None:
    numbers = set(re.findall(r"^#+ ([0-9A-D](?:\.[0-9]+)*)", SPEC, re.MULTILINE))
    source = (ROOT / "spec" / "obd_reference.py").read_text(encoding="utf-8")
    own = SPEC.replace("RFC 8878 section", "")
    cited = set(re.findall(r"[Ss]ection ([0-9]+(?:\.[0-9]+)*)", own))
    cited |= set(re.findall(r"[Ss]pec ([0-9]+(?:\.[0-9]+)*)", source))
    assert cited - numbers == set()


def test_vectors_are_what_the_generator_writes() -> None:
    command = [sys.executable, str(ROOT / "tools" / "make_vectors.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def hex_dump() -> dict[int, bytes]:
    rows = re.findall(r"^([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+) ", SPEC, re.MULTILINE)
    return {int(offset, 16): bytes.fromhex(digits) for offset, digits in rows}


def test_worked_example_shows_the_bytes_of_its_vector() -> None:
    data = (VECTORS / "valid/worked-example/bundle.obd/mlp.obd.safetensors").read_bytes()
    rows = hex_dump()
    assert rows
    shown: set[int] = set()
    for offset, row in rows.items():
        assert data[offset : offset + len(row)] == row, f"{offset:04x}"
        shown.update(range(offset, offset + len(row)))
    left_out = set(range(len(data))) - shown
    assert {data[index] for index in left_out} == {0x20}, "only header padding may be left out"
    assert left_out == set(range(min(left_out), 4096))


def test_worked_example_shows_the_manifest_of_its_vector() -> None:
    manifest = (VECTORS / "valid/worked-example/bundle.obd/obd.json").read_text(encoding="utf-8")
    assert f"```json\n{manifest}\n```" in SPEC


def test_command_line_says_yes_and_no(capsys: pytest.CaptureFixture[str]) -> None:
    case = VECTORS / "valid" / "worked-example"
    assert reference.main([str(case / "bundle.obd"), str(case / "base.safetensors")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert reference.main([str(VECTORS / "invalid" / "pad-row-0" / "bundle.obd")]) == 1
    assert capsys.readouterr().out.endswith("[OBD-SIGN-PAD]\n")
    assert reference.main([]) == 2


def test_without_a_base_only_what_needs_none_is_rebuilt() -> None:
    case = VECTORS / "valid" / "same-and-tied"
    assert set(reference.decode(case / "bundle.obd")) == {"new", "copy"}


def test_manifest_over_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "obd.json").open("wb") as file:
        file.truncate(64 * 2**20 + 1)
    with pytest.raises(reference.Violation) as caught:
        reference.decode(tmp_path)
    assert caught.value.id == "OBD-JSON-LIMIT"


def test_the_reference_refuses_to_rebuild_more_than_it_may() -> None:
    case = VECTORS / "valid" / "same-and-tied"
    sizes = [len(tensor.data) for tensor in reference.decode(*arguments(case)).values()]
    with pytest.raises(reference.Violation) as caught:
        reference.decode(*arguments(case), limit=sum(sizes) // 2)
    assert caught.value.id == "LIMIT"
    assert "LIMIT" in SPEC


def arguments(case: Path) -> tuple[Path, Path]:
    return case / "bundle.obd", case / "base.safetensors"


def test_the_reference_decodes_chunk_by_chunk() -> None:
    count = 12 * 2**20
    base = reference.Tensor("U8", (3, 5), bytes(15))
    coding = {"content": blake3.blake3(bytes(count)).hexdigest()}
    entry = {"dtype": "U8", "shape": [count // 8, 8], "coding": coding}
    tracemalloc.start()
    try:
        assert reference.decode_exact(entry, [b"\0"] * 12, base, "x") == bytes(count)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * count + 2**27  # bits of all elements at once would take 8 bytes each, thrice


@pytest.mark.parametrize("text", [b'"' + b'\\"' * 200_000, b'"' + b"x" * 2_000_000 + b'"'])
def test_the_reference_reads_long_strings_in_linear_time_and_space(text: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(reference.Violation, match="OBD-JSON-SYNTAX"):
            reference.parse_json(text + b"]", "x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(text)
