from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import onebitfmt
from onebitfmt import staging
from onebitfmt.errors import OutputError
from onebitfmt.staging import check_output, staged
from onebitfmt.verbs.convert import convert, is_bundle
from onebitfmt.verbs.plan import ConvertOptions
from onebitfmt.verbs.verify import verify

if TYPE_CHECKING:
    from tests.conftest import Models, Pair

PACKAGE_ROOT = Path(onebitfmt.__file__).parents[1]


def never(_: Path) -> bool:
    return False


def always(_: Path) -> bool:
    return True


def write_one(output: Path, text: str) -> None:
    with staged(output) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text(text)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def dead_process() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_output_appears_whole_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with staged(output) as folder:
        assert folder.parent == tmp_path
        assert folder.name.startswith(".")
        (folder / "file").write_text("x")
        assert not output.exists()
    assert (output / "file").read_text() == "x"
    assert listing(tmp_path) == ["out"]


def test_an_output_in_the_working_folder_needs_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_one(Path("out"), "x")
    assert (tmp_path / "out" / "sub" / "file").read_text() == "x"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, MemoryError])
@pytest.mark.parametrize("existing", [True, False])
def test_nothing_is_left_or_changed_when_the_block_fails(
    tmp_path: Path, error: type[BaseException], existing: bool
) -> None:
    output = tmp_path / "out"
    if existing:
        write_one(output, "old")

    def fail() -> None:
        with staged(output) as folder:
            (folder / "file").write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert listing(tmp_path) == (["out"] if existing else [])
    assert not existing or (output / "sub" / "file").read_text() == "old"


@pytest.mark.parametrize("swap", [True, False], ids=["swap", "two renames"])
def test_the_old_output_stands_until_the_new_one_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: bool
) -> None:
    if not swap:
        monkeypatch.setattr(staging, "_exchange", lambda a, b: False)
    output = tmp_path / "out"
    write_one(output, "old")
    with staged(output) as folder:
        (folder / "new").write_text("new")
        assert (output / "sub" / "file").read_text() == "old"
    assert listing(output) == ["new"]
    assert listing(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["out", "out.obd", "a-b", "model[1].obd", "what?"])
def test_what_a_dead_process_left_is_removed(tmp_path: Path, dead_process: int, name: str) -> None:
    left = tmp_path / f".{name}.partial-{dead_process}-0123abcd"
    left.mkdir()
    (left / "part-0").write_text("x")
    write_one(tmp_path / name, "x")
    assert listing(tmp_path) == [name]


def test_folders_of_running_processes_and_of_other_outputs_stay(
    tmp_path: Path, dead_process: int
) -> None:
    others = [f".out.partial-{os.getpid()}-0123abcd", f".other.partial-{dead_process}-0123abcd"]
    for name in others:
        (tmp_path / name).mkdir()
    write_one(tmp_path / "out", "x")
    assert listing(tmp_path) == sorted([*others, "out"])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EACCES, "cannot write there"),
        (errno.EROFS, "cannot write there"),
    ],
)
def test_a_disk_that_refuses_is_an_output_error(tmp_path: Path, code: int, words: str) -> None:
    with pytest.raises(OutputError, match=words) as caught, staged(tmp_path / "out"):
        raise OSError(code, os.strerror(code))
    assert str(tmp_path) in str(caught.value)
    assert listing(tmp_path) == []


def test_other_system_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged(tmp_path / "out"):
        raise FileNotFoundError
    assert listing(tmp_path) == []


def make_folder_with(name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        (path / name).write_text("x")

    return make


@pytest.mark.parametrize(
    ("make", "is_ours", "overwrite", "words"),
    [
        (Path.mkdir, always, False, "pass --overwrite"),
        (Path.touch, always, False, "pass --overwrite"),
        (make_folder_with("precious"), never, True, "left alone"),
        (Path.touch, always, True, "left alone"),
    ],
    ids=["exists", "file exists", "folder of others", "file of others"],
)
def test_an_output_is_refused_before_any_work(
    tmp_path: Path,
    make: Callable[[Path], None],
    is_ours: Callable[[Path], bool],
    overwrite: bool,
    words: str,
) -> None:
    output = tmp_path / "out"
    make(output)
    with pytest.raises(OutputError, match=words) as caught:
        check_output(output, overwrite=overwrite, is_ours=is_ours)
    assert str(output) in str(caught.value)


@pytest.mark.parametrize(
    ("make", "is_ours"),
    [(None, never), (Path.mkdir, never), (make_folder_with("mine"), always)],
    ids=["new", "empty folder", "ours"],
)
def test_an_output_is_accepted(
    tmp_path: Path, make: Callable[[Path], None] | None, is_ours: Callable[[Path], bool]
) -> None:
    output = tmp_path / "out"
    if make is not None:
        make(output)
    check_output(output, overwrite=make is not None, is_ours=is_ours)


def test_an_output_in_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no such folder") as caught:
        check_output(tmp_path / "nowhere" / "out", overwrite=False, is_ours=always)
    assert str(tmp_path / "nowhere") in str(caught.value)


# --- whole conversions ---------------------------------------------------------------------------


def test_a_full_disk_stops_a_conversion_and_leaves_nothing(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="no space left"):
        convert(pair.base, pair.expert, tmp_path / "o.obd", ConvertOptions(preset="none"))
    assert listing(tmp_path) == []


class Conversion:
    """A real `python -m onebitfmt convert` of a model that takes a good part of a second."""

    def __init__(self, base: Path, expert: Path, work: Path) -> None:
        self.base, self.expert, self.work = base, expert, work
        self.output = work / "out.obd"

    def start(self, *options: str, limit: int | None = None) -> subprocess.Popen[str]:
        arguments = ["convert", str(self.base), str(self.expert), "-o", str(self.output)]
        command = [sys.executable, "-m", "onebitfmt", *arguments, "--preset", "none", "-j", "1"]
        if limit is not None:
            program = (
                "import resource, runpy, sys; "
                f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
                "runpy.run_module('onebitfmt', run_name='__main__', alter_sys=True)"
            )
            command[1:3] = ["-c", program]
        environment = os.environ | {"PYTHONPATH": str(PACKAGE_ROOT)}
        return subprocess.Popen(
            [*command, *options], env=environment, text=True, stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip

    def start_until_writing(self, *options: str) -> subprocess.Popen[str]:
        process = self.start(*options)
        begun = f".out.obd.partial-{process.pid}-*/part-0"
        while process.poll() is None and not any(self.work.glob(begun)):
            time.sleep(0.002)
        return process


@pytest.fixture(scope="module")
def large_pair(
    tmp_path_factory: pytest.TempPathFactory, models_at: Callable[[Path], Models]
) -> tuple[Path, Path]:
    models = models_at(tmp_path_factory.mktemp("large"))
    shapes = {f"model.layers.{i}.mlp.up_proj.weight": (1024, 1024) for i in range(8)}
    tensors = models.random(1, shapes)
    return models.save("base", tensors), models.save("expert", models.tuned(tensors, 2))


@pytest.fixture
def conversion(large_pair: tuple[Path, Path], tmp_path: Path) -> Conversion:
    return Conversion(*large_pair, tmp_path)


def test_killed_at_any_moment_there_is_no_output_or_a_valid_one(conversion: Conversion) -> None:
    delays = random.Random(7)
    for _ in range(3):
        process = conversion.start_until_writing("--overwrite")
        time.sleep(delays.uniform(0, 0.4))
        process.kill()
        process.communicate()
        if conversion.output.exists():
            assert verify(conversion.output, conversion.base).findings == ()
    process = conversion.start("--overwrite")
    _, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert listing(conversion.work) == ["out.obd"]
    assert verify(conversion.output, conversion.base).findings == ()


def test_killed_while_replacing_the_old_output_stands(conversion: Conversion) -> None:
    assert conversion.start("--name", "old").communicate()[1] == ""
    process = conversion.start_until_writing("--overwrite", "--name", "new")
    process.kill()
    process.communicate()
    assert verify(conversion.output).findings == ()
    assert b'"name":"old"' in (conversion.output / "obd.json").read_bytes()


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGINT, 130, "interrupted; nothing was written\n"), (signal.SIGTERM, 143, "")],
)
def test_interrupted_nothing_is_left(
    conversion: Conversion, number: signal.Signals, code: int, words: str
) -> None:
    process = conversion.start_until_writing()
    process.send_signal(number)
    output, errors = process.communicate()
    assert (process.returncode, output, errors) == (code, "", words)
    assert listing(conversion.work) == []


def test_a_limit_on_file_size_stops_it_in_a_sentence(conversion: Conversion) -> None:
    process = conversion.start(limit=1 << 20)
    output, errors = process.communicate()
    assert (process.returncode, output) == (3, "")
    assert errors.startswith("error: ")
    assert str(conversion.work) in errors
    assert errors.count("\n") == 1
    assert listing(conversion.work) == []


def test_is_bundle_looks_for_the_manifest(pair: Pair) -> None:
    assert is_bundle(pair.bundle)
    assert not is_bundle(pair.base)
