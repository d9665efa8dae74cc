from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from onebitfmt.collection import Collection
from onebitfmt.errors import BaseMismatchError, FormatError, MissingBundleError, UsageError
from onebitfmt.routing.router import Router
from onebitfmt.routing.spec import FeatureSpec
from onebitfmt.transfer.offer import Offer, Upload
from onebitfmt.verbs.convert import convert
from onebitfmt.verbs.plan import ConvertOptions

if TYPE_CHECKING:
    from tests.conftest import Models, Pair


def router_of(*labels: str) -> Router:
    spec = FeatureSpec(kind="ngrams", dimension=4, sizes=(1,))
    layer = (np.ones((len(labels), 4), np.float32), np.zeros(len(labels), np.float32))
    return Router(labels=labels, spec=spec, layers=(layer,), temperature=1.0)


@pytest.fixture
def collection(pair: Pair, tmp_path: Path) -> Path:
    bundles = {"math": pair.bundle, "code": pair.bundle}
    Collection.create(tmp_path / "c", pair.base, bundles, router=router_of("code", "math"))
    return tmp_path / "c"


def on_disk(folder: Path, prefix: str = "") -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file of a folder."""
    return {
        f"{prefix}{p.relative_to(folder).as_posix()}": (
            p.stat().st_size,
            hashlib.sha256(p.read_bytes()).hexdigest(),
        )
        for p in folder.rglob("*")
        if p.is_file()
    }


def offered(offer: Offer) -> dict[str, tuple[int, str]]:
    return {path: (upload.nbytes, upload.sha256) for path, upload in offer.files().items()}


def test_a_collection_offers_all_its_files_but_config_and_readme(collection: Path) -> None:
    (collection / "README.md").write_text("mine")
    (collection / "notes.txt").write_text("stays here")
    offer = Offer.open(collection)
    expected = on_disk(collection)
    for name in ("config.json", "README.md", "notes.txt"):
        del expected[name]
    assert offered(offer) == expected
    assert offer.whole
    for path, upload in offer.files().items():
        assert upload.read() == (collection / path).read_bytes()


def test_a_bundle_offers_itself_as_a_collection_of_one(pair: Pair, tmp_path: Path) -> None:
    offer = Offer.open(pair.bundle)
    assert offered(offer) == on_disk(pair.bundle, "experts/expert.obd/")
    assert not offer.whole
    made = Collection.create(tmp_path / "c", pair.base, [pair.bundle])
    assert offer.config == made.config


def test_a_file_of_given_bytes_knows_its_digest() -> None:
    upload = Upload.of(b"abc")
    assert (upload.nbytes, upload.read()) == (3, b"abc")
    # FIPS 180-2, appendix B.1.
    assert upload.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_is_incomplete_or_damaged_is_not_offered(
    pair: Pair, collection: Path, tmp_path: Path
) -> None:
    partial = tmp_path / "partial.obd"
    shutil.copytree(pair.bundle, partial)
    next(partial.glob("mlp*")).unlink()
    with pytest.raises(FormatError, match="incomplete: mlp") as caught:
        Offer.open(partial)
    assert caught.value.id == "OBD-DIR-MISSING"
    router = collection / "router.safetensors"
    router.write_bytes(router.read_bytes()[:-1] + b"x")
    with pytest.raises(FormatError, match="not the router recorded"):
        Offer.open(collection)
    with pytest.raises(MissingBundleError):
        Offer.open(tmp_path / "none")
    with pytest.raises(FormatError, match="no manifest"):
        Offer.open(pair.base.parent)


def test_a_bundle_whose_name_names_no_folder_is_refused_with_the_remedy(
    pair: Pair, tmp_path: Path
) -> None:
    odd = tmp_path / "my math.obd"
    convert(pair.base, pair.expert, odd, ConvertOptions(preset="linear"))
    with pytest.raises(UsageError, match="obd collect BASE NAME=BUNDLE"):
        Offer.open(odd)


def test_a_bundle_joins_the_published_collection(collection: Path, pair: Pair) -> None:
    published = replace(
        Collection.open(collection).config,
        base=replace(Collection.open(collection).config.base, repo="ns/base", revision="abc"),
    )
    config = Offer.open(pair.bundle).config_with(published)
    assert sorted(config.experts) == ["code", "expert", "math"]
    assert config.base == published.base
    assert (config.recipe, config.router) == (published.recipe, published.router)
    again = Offer.open(pair.bundle).config_with(config)
    assert again == config
    assert Offer.open(pair.bundle).config_with(None) == Offer.open(pair.bundle).config


def test_a_collection_takes_the_place_of_the_published_one(collection: Path, pair: Pair) -> None:
    published = Offer.open(pair.bundle).config
    own = Collection.open(collection).config
    assert Offer.open(collection).config_with(published) == own
    # But for the place of the same base.
    known = replace(published.base, repo="ns/base", revision="abc")
    config = Offer.open(collection).config_with(replace(published, base=known))
    assert config == replace(own, base=known)
    other = replace(known, fingerprint="ab" * 32)
    assert Offer.open(collection).config_with(replace(published, base=other)) == own


def test_a_bundle_of_another_base_does_not_join(
    models: Models, collection: Path, tmp_path: Path
) -> None:
    base = models.llama(7)
    paths = models.save("base7", base), models.save("expert7", models.tuned(base, 8))
    convert(*paths, tmp_path / "other.obd", ConvertOptions(preset="linear"))
    with pytest.raises(BaseMismatchError, match="another repository") as caught:
        Offer.open(tmp_path / "other.obd").config_with(Collection.open(collection).config)
    theirs = json.loads((collection / "config.json").read_bytes())["base"]["fingerprint"]
    assert theirs[:12] in str(caught.value)
