"""Ranges around the parts of an answer: which there are, in which order, one inside another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.runtime.latency.answering_bundle import write_answering, write_photos

from atp_runtime.cli.profile import main as atp_profile
from atp_runtime.cli.run import main as atp_run
from atp_runtime.errors import CheckFailedError, MachineError
from atp_runtime.generation import GenerationOptions
from atp_runtime.ranges import open_nvtx
from atp_runtime.sampling import Sampler
from atp_runtime.session import Session

LISTENER = Path(__file__).with_name("nvtx_listener.c")
NEW_TOKENS = 3
STAGES = ("segment_0", "segment_1", "segment_2", "head")
PREFILL = [
    (0, "prefill"),
    (1, "embed and splice"),
    (1, "segment_0"),
    (1, "select before 2"),
    (1, "segment_1"),
    (1, "select before 3"),
    (1, "segment_2"),
    (1, "head"),
    (0, "sample"),
]
STEP = [(0, "decode step"), *((1, stage) for stage in STAGES), (0, "sample")]
PARTS = [(0, "tokenise"), (0, "photo"), (0, "vision"), (0, "tokenise")]
ANSWER = [*PARTS, *PREFILL, *STEP * (NEW_TOKENS - 1)]
SHORT = GenerationOptions(NEW_TOKENS, ignore_end=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that can be asked about photos, with two pruning points."""
    return write_answering(tmp_path_factory.mktemp("answering") / "bundle")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photo"), 1)[0]


@pytest.fixture
def session(bundle: Path) -> Iterator[Session]:
    with Session.open(bundle, threads=1) as opened:
        yield opened


class Timeline:
    """Ranges in the order they began, each with how many it lies in."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, str]] = []
        self.depth = 0

    @contextmanager
    def range(self, name: str) -> Iterator[None]:
        self.ranges.append((self.depth, name))
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1


def test_every_part_of_an_answer_has_a_range(session: Session, photo: Path) -> None:
    line = Timeline()
    plain = session.ask("what is it", [photo], SHORT)
    session.mark_parts(line.range)
    marked = session.ask("what is it", [photo], SHORT)
    assert line.ranges == ANSWER
    assert marked.ids == plain.ids
    assert [it.kept.tolist() for it in marked.points] == [it.kept.tolist() for it in plain.points]


def test_ranges_end_when_a_part_fails(session: Session, photo: Path) -> None:
    def fail(*_: object) -> object:
        raise CheckFailedError("no", why="it is a test.", fix="none.")

    line = Timeline()
    session.model.select = fail
    session.mark_parts(line.range)
    with pytest.raises(CheckFailedError):
        session.ask("what is it", [photo], SHORT)
    assert line.ranges[-1] == (1, "select before 2")
    assert line.depth == 0


def test_a_session_without_ranges_is_as_it_was_before_one_with_them(
    bundle: Path, photo: Path
) -> None:
    line, pick = Timeline(), Sampler.pick
    with Session.open(bundle, threads=1) as marked:
        marked.mark_parts(line.range)
        assert Sampler.pick is not pick
    assert Sampler.pick is pick
    assert not {"prefill", "run_stage"} & vars(marked.model.decoder).keys()
    with Session.open(bundle, threads=1) as other:
        other.ask("what is it", [photo], SHORT)
    assert line.ranges == []


def test_without_the_package_the_machine_lacks_something(
    monkeypatch: pytest.MonkeyPatch, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with pytest.raises(MachineError, match="nvtx cannot be used"):
        open_nvtx()
    assert atp_run([str(bundle), "what is it", "--nvtx"]) == 3
    assert "python -m pip install nvtx" in capsys.readouterr().err
    out = str(bundle.parent / "profile")
    assert atp_profile([str(bundle), "--prompt", "what", "--nvtx", "--output", out]) == 3


@pytest.mark.parametrize("words", [(), ("--predict", "all", "--image", "photo.jpg")])
def test_ranges_without_answers_are_refused(
    bundle: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert atp_profile([str(bundle), "--nvtx", *words]) == 2
    assert "--nvtx" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words", "answers"),
    [
        ("run", ("what is it", "--max-new-tokens", str(NEW_TOKENS)), 1),
        ("profile", ("--prompt", "what is it", "--runs", "1", "--warmup", "0"), 2),
    ],
)
def test_a_profiler_is_handed_the_ranges_by_nvtx(
    bundle: Path, photo: Path, tmp_path: Path, command: str, words: tuple[str, ...], answers: int
) -> None:
    pytest.importorskip("nvtx")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    library, found = tmp_path / "listener.so", tmp_path / "ranges"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(LISTENER)], check=True)
    if command == "profile":
        words = (*words, "--new-tokens", str(NEW_TOKENS), "--output", str(tmp_path / "out"))
    line = (str(bundle), *words, "--image", str(photo), "--threads", "1", "--nvtx", "--quiet")
    listened = {"NVTX_INJECTION64_PATH": str(library), "NVTX_LISTENER_FILE": str(found)}
    environment = {**os.environ, **listened, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    module = [sys.executable, "-m", f"atp_runtime.cli.{command}"]
    subprocess.run([*module, *line], env=environment, check=True, capture_output=True)
    lines = [it.split(" ", 2) for it in found.read_text().splitlines()]
    assert {domain for domain, _, _ in lines} == {"atp-llava"}
    ranges = [(int(depth), name) for _, depth, name in lines]
    assert ranges.count((0, "photo")) >= answers
    start = len(ranges) - 1 - ranges[::-1].index((0, "photo")) - 1
    assert ranges[start:][: len(PARTS) + len(PREFILL)] == [*PARTS, *PREFILL]
