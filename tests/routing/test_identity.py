from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import CheckpointError
from onebitfmt.routing.identity import base_fingerprint, tokenizer_fingerprint

if TYPE_CHECKING:
    from tests.conftest import Models, Pair


def test_the_fingerprint_is_that_of_the_bundle(pair: Pair) -> None:
    recorded = json.loads((pair.bundle / "obd.json").read_bytes())["base"]["fingerprint"]
    assert base_fingerprint(Checkpoint.open(pair.base)) == recorded
    assert base_fingerprint(Checkpoint.open(pair.base), jobs=1) == recorded
    rows = [
        [name, dtype, list(bits.shape), blake3(bits.tobytes()).hexdigest()]
        for name, (dtype, bits) in sorted(pair.base_tensors.items())
    ]
    text = json.dumps(rows, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == recorded


def test_the_tokenizer_is_hashed_as_a_file(models: Models) -> None:
    folder = models.save("m", models.llama(1), files={"tokenizer.json": "{}"})
    found = tokenizer_fingerprint(Checkpoint.open(folder))
    assert found == hashlib.sha256(b"{}").hexdigest()


def test_no_tokenizer_says_how_to_make_one(models: Models) -> None:
    folder = models.save("m", models.llama(1))
    with pytest.raises(CheckpointError, match="save_pretrained"):
        tokenizer_fingerprint(Checkpoint.open(folder))
