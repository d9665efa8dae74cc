"""A small collection of two experts and a router, and a Hub that holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import onebitfmt
from onebitfmt.checkpoint import Checkpoint
from onebitfmt.collection import Collection
from onebitfmt.routing.router import Router
from onebitfmt.routing.spec import FeatureSpec
from onebitfmt.verbs.convert import convert
from onebitfmt.verbs.plan import ConvertOptions

if TYPE_CHECKING:
    from tests.conftest import Models
    from tests.hubserver.hub import Hub
    from tests.hubserver.log import Request

REPO = "tester/experts"
README = b"---\nlicense: mit\n---\n# Experts\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Local:
    """The collection's folder and its base's: for reading only."""

    folder: Path
    base: Path

    def files(self) -> dict[str, bytes]:
        """All its files, by path."""
        return contents(self.folder)


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """The collection in the repository `REPO`, at `commit`."""

    hub: Hub
    local: Local
    commit: str
    _told: list[Request] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        """All files of the repository that belong to the collection, by path."""
        return {**self.local.files(), "README.md": README}

    def size(self, *prefixes: str) -> int:
        """Bytes of the files whose paths begin so."""
        return sum(len(data) for path, data in self.files.items() if path.startswith(prefixes))

    def requests(self) -> list[Request]:
        """The requests since the last time."""
        found = self.hub.requests[len(self._told) :]
        self._told.extend(found)
        return found

    def downloaded(self) -> dict[str, int]:
        """Bytes that were sent of each file since the last time, by path; listings apart."""
        found: dict[str, int] = {}
        for request in self.requests():
            if request.method == "GET" and request.path.startswith(f"/{REPO}/resolve/"):
                path = request.path.split("/", 5)[5]
                found[path] = found.get(path, 0) + request.sent
        return found


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder but for the Hub client's notes, by path."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: p.read_bytes() for name, p in found.items() if not name.startswith(".cache/")}


@pytest.fixture(scope="session")
def local_collection(
    tmp_path_factory: pytest.TempPathFactory, models_at: Callable[[Path], Models]
) -> Local:
    """Experts chat (all exact) and math (linear layers one-bit), their base's place recorded."""
    models = models_at(tmp_path_factory.mktemp("published"))
    tensors = models.llama(1)
    base = models.save("base", tensors, files={"config.json": "{}"})
    opened = Checkpoint.open(base, repo="tester/base", revision="0" * 40)
    for seed, (name, preset) in enumerate((("chat", "none"), ("math", "linear"))):
        files = {"config.json": f'{{"name": "{name}"}}', "tokenizer/vocab.txt": name}
        expert = models.save(name, models.tuned(tensors, seed + 2), files=files)
        convert(opened, expert, models.root / f"{name}.obd", ConvertOptions(preset=preset))
    spec = FeatureSpec(kind="ngrams", dimension=4, sizes=(1,))
    layer = (np.ones((2, 4), np.float32), np.arange(2, dtype=np.float32))
    router = Router(labels=("chat", "math"), spec=spec, layers=(layer,), temperature=1.0)
    bundles = [models.root / "chat.obd", models.root / "math.obd"]
    Collection.create(models.root / "c", opened, bundles, router=router)
    return Local(folder=models.root / "c", base=base)


@pytest.fixture
def published(hub: Hub, local_collection: Local) -> Iterator[Published]:
    """The collection on the Hub; nothing of it is in the cache. Every request must name us."""
    files: dict[str, bytes | Path] = {**local_collection.files(), "README.md": README}
    yield Published(hub=hub, local=local_collection, commit=hub.commit(REPO, files))
    agents = {request.user_agent.split("; ")[0] for request in hub.requests}
    assert agents <= {f"onebitfmt/{onebitfmt.__version__}"}
