from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onebitfmt.checkpoint import Checkpoint
from onebitfmt.errors import BaseMismatchError, UsageError
from onebitfmt.routing.features import FEATURES, make_featurizer, needs_base, open_featurizer
from onebitfmt.routing.spec import KINDS


def test_the_table_is_that_of_the_specification() -> None:
    assert tuple(FEATURES) == KINDS
    assert {kind for kind in FEATURES if not needs_base(kind)} == {"ngrams"}


@pytest.mark.parametrize("kind", ["ngrams", "embedding"])
def test_opened_features_are_those_made(kind: str, base: Checkpoint) -> None:
    made = make_featurizer(kind, base)
    again = open_featurizer(made.spec, base)
    assert again.spec == made.spec
    assert (again(["47+38="]) == made(["47+38="])).all()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="hidden, embedding, ngrams"):
        make_featurizer("words")


@pytest.mark.parametrize("kind", ["embedding", "hidden"])
def test_a_missing_base_is_asked_for(kind: str) -> None:
    with pytest.raises(UsageError, match="--base"):
        make_featurizer(kind)


def test_another_tokenizer_is_refused_with_both_named(base: Checkpoint, tmp_path: Path) -> None:
    spec = make_featurizer("embedding", base).spec
    folder = tmp_path / "base"
    shutil.copytree(base.folder, folder)
    text = (folder / "tokenizer.json").read_bytes() + b"\n"
    (folder / "tokenizer.json").write_bytes(text)
    with pytest.raises(BaseMismatchError) as caught:
        open_featurizer(spec, Checkpoint.open(folder))
    assert str(spec.tokenizer)[:12] in str(caught.value)
    assert hashlib.sha256(text).hexdigest()[:12] in str(caught.value)


def test_no_torch_without_hidden_states(base: Checkpoint) -> None:
    code = (
        "import sys; from onebitfmt.checkpoint import Checkpoint; "
        "from onebitfmt.routing.features import make_featurizer as m; "
        "from onebitfmt.routing import train; "
        f"b = Checkpoint.open({str(base.path)!r}); m('ngrams')(['a']); m('embedding', b)(['a']); "
        "assert not {'torch', 'transformers'} & set(sys.modules), 'loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
