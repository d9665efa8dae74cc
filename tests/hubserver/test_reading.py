"""Listings and downloads, through the huggingface_hub client."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
from huggingface_hub import (
    HfApi,
    HfFileSystem,
    get_session,
    get_token,
    hf_hub_download,
    hf_hub_url,
    scan_cache_dir,
    snapshot_download,
)
from huggingface_hub.errors import LocalEntryNotFoundError

from tests.hubserver.hub import Hub

REPO = "ns/model"


def safetensors(values: bytes) -> bytes:
    entry = {"dtype": "U8", "shape": [len(values)], "data_offsets": [0, len(values)]}
    header = json.dumps({"x": entry}).encode()
    return struct.pack("<Q", len(header)) + header + values


FILES = {
    "README.md": b"---\nlicense: mit\n---\n# Words\n",
    "config.json": b"{}",
    "model.safetensors": safetensors(bytes(range(256)) * 1000),
    "f/a.safetensors": safetensors(b"a" * 100),
    "f/g/b.safetensors": safetensors(b"b" * 200),
    "f/odd name [1].txt": b"odd",
    "empty": b"",
}


@pytest.fixture
def api(hub: Hub) -> HfApi:
    hub.commit(REPO, FILES)
    return HfApi()


def content(folder: str | Path) -> dict[str, bytes]:
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {path: data for path, data in found.items() if not path.startswith(".cache")}


def fetch(path: str, wanted: str = "", revision: str = "main") -> tuple[int, bytes]:
    """Status and body of a plain request for a range."""
    headers = {"Authorization": f"Bearer {get_token()}"} | ({"Range": wanted} if wanted else {})
    answer = get_session().get(hf_hub_url(REPO, path, revision=revision), headers=headers)
    return answer.status_code, answer.content


def test_the_files_with_their_sizes_and_digests(api: HfApi) -> None:
    assert set(api.list_repo_files(REPO)) == {*FILES, ".gitattributes"}
    siblings = {s.rfilename: s for s in api.model_info(REPO, files_metadata=True).siblings or ()}
    for path, data in FILES.items():
        sibling = siblings[path]
        assert sibling.size == len(data)
        if path.endswith(".safetensors"):
            assert sibling.lfs
            assert sibling.lfs.sha256 == hashlib.sha256(data).hexdigest()
        else:
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            assert (sibling.blob_id, sibling.lfs) == (blob, None)


@pytest.mark.parametrize("page_size", [1000, 2])
def test_a_folder_and_all_folders(hub: Hub, api: HfApi, page_size: int) -> None:
    hub.configure(page_size=page_size)
    assert {item.path for item in api.list_repo_tree(REPO)} == {
        *(path for path in FILES if "/" not in path),
        ".gitattributes",
        "f",
    }
    below = {item.path for item in api.list_repo_tree(REPO, "f", recursive=True)}
    assert below == {"f/a.safetensors", "f/g", "f/g/b.safetensors", "f/odd name [1].txt"}
    assert len(hub.matching("/tree/")) == (2 if page_size == 1000 else 5)


def test_some_paths(api: HfApi) -> None:
    found = api.get_paths_info(REPO, ["config.json", "f", "no", "f/g/b.safetensors"])
    assert [item.path for item in found] == ["config.json", "f", "f/g/b.safetensors"]
    assert api.file_exists(REPO, "config.json")
    assert not api.file_exists(REPO, "no")


@pytest.mark.parametrize("cdn", [False, True])
def test_a_snapshot_is_complete_and_then_cached(hub: Hub, api: HfApi, cdn: bool) -> None:
    hub.configure(cdn=cdn)
    folder = snapshot_download(REPO)
    assert Path(folder).is_relative_to(hub.cache)
    assert content(folder) == FILES | {".gitattributes": hub.read(REPO, ".gitattributes")}
    for request in hub.matching("/_cdn/"):
        assert request.headers["host"].startswith("localhost:")
        assert "authorization" not in request.headers
    assert len(hub.matching("/_cdn/", "GET")) == (3 if cdn else 0)
    hub.forget()
    assert snapshot_download(REPO, revision=hub.head(REPO)) == folder
    assert hub.sent == 0
    assert len(scan_cache_dir().repos) == 1
    assert api.verify_repo_checksums(REPO).checked_count == len(FILES) + 1


def test_patterns_and_a_local_folder(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    folder = snapshot_download(REPO, allow_patterns=["f/*"], local_dir=tmp_path / "local")
    assert content(folder) == {path: data for path, data in FILES.items() if path[:2] == "f/"}
    assert not any(path.is_symlink() for path in Path(folder).rglob("*"))


@pytest.mark.parametrize("revision", ["v1", "old", "refs/pr/1", "sha"])
def test_a_file_of_a_revision(hub: Hub, api: HfApi, revision: str) -> None:
    sha = hub.head(REPO)
    hub.tag(REPO, "v1")
    hub.repo(REPO).pull_request("main")
    hub.repo(REPO).refs["old"] = sha
    hub.commit(REPO, {"config.json": b"[]"})
    path = hf_hub_download(REPO, "config.json", revision=sha if revision == "sha" else revision)
    assert Path(path).read_bytes() == b"{}"
    assert Path(path).parent.name == sha
    assert Path(hf_hub_download(REPO, "config.json")).read_bytes() == b"[]"


def test_a_dry_run_moves_nothing(hub: Hub, api: HfApi) -> None:
    hf_hub_download(REPO, "config.json")
    sent = sum(request.sent for request in hub.matching("/resolve/"))
    previews = {item.filename: item for item in snapshot_download(REPO, dry_run=True)}
    assert previews["model.safetensors"].file_size == len(FILES["model.safetensors"])
    assert [name for name, item in previews.items() if item.is_cached] == ["config.json"]
    assert sum(request.sent for request in hub.matching("/resolve/")) == sent


def test_a_download_is_counted_and_names_its_library(hub: Hub, api: HfApi) -> None:
    named = HfApi(library_name="onebitfmt", library_version="9.9")
    named.snapshot_download(REPO, allow_patterns="config.json")
    resolved = hub.matching("/resolve/")
    assert [request.method for request in resolved] == ["HEAD", "GET"]
    for request in resolved:
        assert request.user_agent.startswith("onebitfmt/9.9;")
    assert (resolved[1].sent, resolved[1].status) == (2, 200)


def test_offline_reads_the_cache(hub: Hub, api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hf_hub_download(REPO, "config.json")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.forget()
    assert hf_hub_download(REPO, "config.json") == path
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(REPO, "README.md")
    assert hub.requests == []


@pytest.mark.parametrize("cdn", [False, True])
def test_ranges(hub: Hub, api: HfApi, cdn: bool) -> None:
    hub.configure(cdn=cdn)
    path = "model.safetensors"
    data = FILES[path]
    assert fetch(path) == (200, data)
    assert fetch(path, "bytes=0-9") == (206, data[:10])
    assert fetch(path, "bytes=200000-210000") == (206, data[200_000:210_001])
    assert fetch(path, "bytes=255000-9999999") == (206, data[255_000:])
    assert fetch(path, "bytes=256000-") == (206, data[256_000:])
    assert fetch(path, "bytes=-7") == (206, data[-7:])
    assert fetch(path, f"bytes={len(data)}-")[0] == 416
    assert fetch("empty") == (200, b"")
    last = hub.matching("/_cdn/" if cdn else "/resolve/main/model", "GET")
    assert [(request.range, request.sent) for request in last[1:3]] == [
        ("bytes=0-9", 10),
        ("bytes=200000-210000", 10_001),
    ]


def test_a_raw_file_is_what_git_holds(hub: Hub, api: HfApi) -> None:
    def raw(path: str) -> tuple[int, bytes]:
        answer = get_session().get(f"{hub.url}/{REPO}/raw/main/{path}")
        return answer.status_code, answer.content

    entry = hub.entry(REPO, "model.safetensors")
    status, held = raw("model.safetensors")
    assert held.decode().splitlines()[1:] == [f"oid sha256:{entry.sha256}", f"size {entry.size}"]
    assert (status, len(held)) == (200, entry.pointer_size)
    assert hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest() == entry.oid
    assert raw("config.json") == (200, b"{}")
    assert raw("no")[0] == 404


def test_the_headers_of_safetensors_files(hub: Hub, api: HfApi) -> None:
    metadata = api.parse_safetensors_file_metadata(REPO, "f/a.safetensors")
    assert metadata.tensors["x"].shape == [100]
    assert api.get_safetensors_metadata(REPO).parameter_count == {"U8": 256_000}
    assert max(request.sent for request in hub.requests) == 100_001


def test_the_file_system(hub: Hub, api: HfApi) -> None:
    files = HfFileSystem()
    path = f"{REPO}/model.safetensors"
    data = FILES["model.safetensors"]
    assert files.info(path)["size"] == len(data)
    assert files.cat_file(path, start=100_000, end=100_050) == data[100_000:100_050]
    with files.open(path, cache_type="none") as file:
        file.seek(1000)
        assert file.read(20) == data[1000:1020]
    assert f"{REPO}/f/a.safetensors" in files.glob(f"{REPO}/**/*.safetensors")


def test_bytes_may_be_swapped_under_the_listing(hub: Hub, api: HfApi) -> None:
    wrong = bytes(len(FILES["f/a.safetensors"]))
    before = hub.entry(REPO, "f/a.safetensors")
    hub.replace(REPO, "f/a.safetensors", wrong)
    assert Path(hf_hub_download(REPO, "f/a.safetensors")).read_bytes() == wrong
    assert hub.entry(REPO, "f/a.safetensors") == before
    mismatches = api.verify_repo_checksums(REPO).mismatches
    assert [mismatch["path"] for mismatch in mismatches] == ["f/a.safetensors"]
