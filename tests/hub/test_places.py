"""What leaves with a wrong file: everything that a repeated download could take it from."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants

from onebitfmt.errors import HubError
from onebitfmt.hub.client import HubOptions
from onebitfmt.hub.places import git_name, git_names
from onebitfmt.hub.snapshot import Snapshot
from tests.hubserver.faults import Fault

if TYPE_CHECKING:
    from tests.hubserver.hub import Hub

REPO = "ns/model"
NAMES = ["config.json", "experts/a.safetensors"]
DATA = {NAMES[0]: b"{}", NAMES[1]: b"a" * 1000}
DIGESTS = {name: hashlib.sha256(data).hexdigest() for name, data in DATA.items()}


@pytest.fixture(autouse=True)
def repo(hub: Hub) -> str:
    return hub.commit(REPO, DATA)


def refused(snapshot: Snapshot) -> None:
    with pytest.raises(HubError, match="wrong bytes"):
        snapshot.check(DIGESTS)


def repeated(local_dir: Path | None = None) -> Snapshot:
    snapshot = Snapshot.open(REPO, local_dir=local_dir)
    snapshot.fetch(NAMES)
    snapshot.check(DIGESTS)
    return snapshot


def below(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


def test_the_link_and_its_blob(hub: Hub) -> None:
    snapshot = repeated()
    pointer = snapshot.folder / NAMES[1]
    blob = pointer.resolve()
    blob.write_bytes(b"damage")
    refused(snapshot)
    assert not pointer.is_symlink()
    assert not blob.exists()
    assert (snapshot.folder / NAMES[0]).is_file()
    repeated()


def test_the_link_the_blob_and_the_shared_blob(hub: Hub) -> None:
    snapshot = repeated()
    blob = (snapshot.folder / NAMES[1]).resolve()
    shared = hub.cache / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(Path("../../blobs/ab") / shared.name)
    assert repeated().folder == snapshot.folder
    shared.write_bytes(b"damage")
    refused(snapshot)
    assert not shared.exists()
    assert not blob.is_symlink()
    repeated()


def test_links_to_files_outside_the_cache_leave_alone_what_they_lead_to(tmp_path: Path) -> None:
    snapshot = repeated()
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    pointer = snapshot.folder / NAMES[1]
    pointer.unlink()
    pointer.symlink_to(mine)
    refused(snapshot)
    assert mine.read_bytes() == b"mine"
    repeated()


@pytest.mark.parametrize("force", [False, True])
def test_a_cache_without_links(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, force: bool
) -> None:
    from huggingface_hub import file_download

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    assert not file_download.are_symlinks_supported(tmp_path)
    snapshot = repeated()
    assert not (snapshot.folder / NAMES[1]).is_symlink()
    hub.faults.add(Fault(path=NAMES[1], method="GET", wrong_bytes=True))
    (snapshot.folder / NAMES[1]).write_bytes(b"damage")
    # Then the client leaves the file as it is, and its blob besides it.
    again = Snapshot.open(REPO, force=force)
    again.fetch(NAMES)
    refused(again)
    hub.faults.clear()
    repeated()


def test_a_folder_and_the_cache_that_it_was_filled_from(hub: Hub, tmp_path: Path) -> None:
    (repeated().folder / NAMES[1]).resolve().write_bytes(b"damage")
    snapshot = Snapshot.open(REPO, local_dir=tmp_path / "d")
    snapshot.fetch(NAMES)
    refused(snapshot)
    repeated(tmp_path / "d")


def test_what_a_download_left_behind_is_removed(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    old = {"experts/old/b.safetensors": b"b", "experts/old/deep/c.txt": b"c", "other.txt": b"o"}
    hub.commit(REPO, old)
    repeated(folder).fetch(old)
    (folder / "experts" / "mine.txt").write_bytes(b"mine")
    # What belongs to the commit at hand may be of another, interrupted download.
    same = Snapshot.open(REPO, local_dir=folder)
    same.remove_stale("experts", NAMES)
    assert (folder / "experts" / "old" / "deep" / "c.txt").is_file()
    hub.commit(REPO, {"newer.txt": b"n"})
    snapshot = Snapshot.open(REPO, local_dir=folder)
    snapshot.remove_stale("experts", [*NAMES, "experts/old/b.safetensors"])
    kept = {*NAMES, "experts/old/b.safetensors", "experts/mine.txt", "other.txt"}
    assert {name for name in below(folder) if not name.startswith(".cache")} == kept
    assert not (folder / "experts" / "old" / "deep").exists()
    snapshot.remove_stale("experts", NAMES)
    assert not (folder / "experts" / "old").exists()
    snapshot.remove_stale("nothing", [])
    assert snapshot.folder == folder


def test_in_the_cache_nothing_is_stale() -> None:
    snapshot = repeated()
    before = below(snapshot.folder)
    snapshot.remove_stale("experts", [])
    assert below(snapshot.folder) == before


def test_files_of_other_repositories_stay(hub: Hub) -> None:
    hub.commit("ns/other", DATA)
    other = Snapshot.open("ns/other")
    other.fetch(NAMES)
    snapshot = repeated()
    (snapshot.folder / NAMES[1]).resolve().write_bytes(b"damage")
    refused(snapshot)
    other.check(DIGESTS)


def test_the_names_are_gits(tmp_path: Path) -> None:
    # `echo hello | git hash-object --stdin`, and of an LFS pointer as git-lfs writes it.
    name, pointer = git_names(b"hello\n")
    assert name == "ce013625030ba8dba906f756967f9e9ca394464a"
    text = (
        b"version https://git-lfs.github.com/spec/v1\n"
        b"oid sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03\nsize 6\n"
    )
    assert pointer == hashlib.sha1(b"blob 126\0" + text).hexdigest()


XET = """
import sys
from pathlib import Path
from huggingface_hub import CommitOperationAdd, HfApi
from onebitfmt.errors import HubError
from onebitfmt.hub.snapshot import Snapshot
from hashlib import sha256
data = bytes(range(256)) * 1000
HfApi().create_commit("ns/model", [CommitOperationAdd("x.safetensors", data)], commit_message="x")
digests = {"x.safetensors": sha256(data).hexdigest()}
snapshot = Snapshot.open("ns/model")
snapshot.fetch(digests)
snapshot.check(digests)
blob = (snapshot.folder / "x.safetensors").resolve()
print(blob)
blob.chmod(0o600)
blob.write_bytes(data[::-1])
try:
    snapshot.check(digests)
except HubError as e:
    print(e, blob.exists())
snapshot.fetch(digests)
snapshot.check(digests)
print((snapshot.folder / "x.safetensors").read_bytes() == data)
"""


@pytest.mark.usefixtures("known_xet")
def test_the_shared_blobs_of_xet(hub: Hub) -> None:
    hub.xet()
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", XET],
        env=hub.environment(PYTHONPATH=root), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    blob, refusal, same = done.stdout.splitlines()
    assert hub.entry(REPO, "x.safetensors").xet is not None
    assert "wrong bytes in x.safetensors; removed" in refusal
    assert refusal.endswith("False")
    assert same == "True"
    # huggingface_hub 1 keeps it with the repository, 2 in a folder that all share.
    assert Path(blob).parent.parent in (hub.cache / "blobs", hub.cache / "models--ns--model")


def test_a_cache_folder_may_be_a_link(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    options = HubOptions(cache_dir=tmp_path / "link")
    snapshot = Snapshot.open(REPO, None, options)
    snapshot.fetch(NAMES)
    blob = (snapshot.folder / NAMES[1]).resolve()
    blob.write_bytes(b"damage")
    refused(snapshot)
    assert not blob.exists()


def test_worked_example_of_a_git_name() -> None:
    # `printf 'test content\\n' | git hash-object --stdin`, from the Pro Git book.
    assert git_name(b"test content\n") == "d670460b4b4aece5915caf5c68d12f560a9fe3e4"
