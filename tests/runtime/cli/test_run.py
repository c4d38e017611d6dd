"""`atp-run` with one question."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image
from tests.runtime.cli.command_line import SHORT, AtpRun, images_of

from atp_models.random_configs import tiny_config
from atp_runtime.backends import BACKENDS
from atp_runtime.cli import backend_options
from atp_runtime.generation import GenerationOptions
from atp_runtime.sampling import SamplingOptions

# Answers


@pytest.mark.parametrize("images", [0, 1, 2])
def test_answer_alone_is_on_standard_output(
    atp_run: AtpRun, asked: Callable[..., list[str]], photos: list[Path], images: int
) -> None:
    ran = atp_run("What is this?", *images_of(photos[:images]), *SHORT)
    assert ran.code == 0
    assert ran.out == asked(["What is this?"], photos[:images])[0] + "\n"


def test_question_may_stand_behind_the_options(
    atp_run: AtpRun, asked: Callable[..., list[str]], photos: list[Path]
) -> None:
    ran = atp_run("--image", photos[0], *SHORT, "What is this?")
    assert (ran.code, ran.out) == (0, asked(["What is this?"], photos[:1])[0] + "\n")


def test_options_reach_the_model(
    atp_run: AtpRun, asked: Callable[..., list[str]], photos: list[Path]
) -> None:
    sampling = SamplingOptions(temperature=2.0, top_k=40, top_p=0.9, seed=5)
    whole = asked(["What?"], photos[:1], GenerationOptions(30, sampling), "Be brief.")[0]
    stop = whole[9:11]
    words = "What? --system X --max-new-tokens 30 --temperature 2 --top-k 40 --top-p 0.9 --seed 5"
    words = [word.replace("X", "Be brief.") for word in words.split()]
    ran = atp_run(*words, *images_of(photos[:1]), "--threads", "1", "--stop", stop)
    assert ran.out == whole[: whole.index(stop)] + "\n"


def test_bundles_notice_is_told_below_the_answer_unless_quiet(atp_run: AtpRun) -> None:
    told = atp_run("What?", *SHORT)
    assert "note: The pruning modules are untrained" in told.err
    quiet = atp_run("What?", *SHORT, "--quiet")
    assert (quiet.out, quiet.err) == (told.out, "")


def test_user_is_told_when_the_answer_was_cut(atp_run: AtpRun) -> None:
    assert "note: the answer was cut: --max-new-tokens allows" in atp_run("What?", *SHORT).err


def test_user_is_told_when_the_answer_is_empty(
    atp_run: AtpRun, asked: Callable[..., list[str]]
) -> None:
    first_character = asked(["What?"])[0][0]
    ran = atp_run("What?", *SHORT, "--stop", first_character)
    assert (ran.code, ran.out) == (0, "\n")
    assert "note: the answer is empty" in ran.err


def test_statistics_are_lines_on_standard_error(atp_run: AtpRun, photos: list[Path]) -> None:
    plain = atp_run("What?", "--image", photos[0], *SHORT, "--quiet")
    told = atp_run("What?", "--image", photos[0], *SHORT, "--quiet", "--stats")
    assert told.out == plain.out
    names = [line[:17].strip() for line in told.err.splitlines()]
    points = ["before layer 1", "before layer 2", "before layer 3", "visual tokens"]
    assert names == ["prompt", *points, "first token", "answer", "peak memory"]
    assert re.search(r"before layer 1 +\d+ of 16 visual tokens kept, \d+ %", told.err)
    assert re.search(r"answer +8 tokens, [\d.]+ tokens/s \([\d.]+ GB/s\)", told.err)


def test_pruning_has_no_lines_when_there_is_no_photo(atp_run: AtpRun) -> None:
    told = atp_run("What?", *SHORT, "--quiet", "--stats").err
    assert [line.split()[0] for line in told.splitlines()] == ["prompt", "first", "answer", "peak"]


def test_one_document_has_answer_and_statistics_when_json_is_wanted(
    atp_run: AtpRun, asked: Callable[..., list[str]], photos: list[Path]
) -> None:
    ran = atp_run("What?", "--image", photos[0], *SHORT, "--json")
    assert (ran.code, ran.err) == (0, "")
    document = ran.document
    assert document["answer"] == asked(["What?"], photos[:1])[0]
    assert document["finish_reason"] == "length"
    assert document["notice"].startswith("The pruning modules are untrained")
    assert document["pictures"] == []
    assert document["statistics"]["visual_tokens"] == 16
    assert [point["before_layer"] for point in document["statistics"]["points"]] == [1, 2, 3]


# Pictures


def test_picture_is_written_when_it_is_asked_for(
    atp_run: AtpRun, photos: list[Path], tmp_path: Path
) -> None:
    target = tmp_path / "pruned.png"
    ran = atp_run("What?", "--image", photos[0], *SHORT, "--show-pruning", target)
    assert ran.code == 0
    assert f"picture: {target}" in ran.err
    assert Image.open(target).size[0] > 100


def test_each_photo_gets_its_picture_when_there_are_several(
    atp_run: AtpRun, photos: list[Path], tmp_path: Path
) -> None:
    words = (*images_of(photos[:2]), *SHORT, "--show-pruning", tmp_path / "p.jpg", "--json")
    pictures = [str(tmp_path / name) for name in ("p-1.jpg", "p-2.jpg")]
    assert atp_run("What?", *words).document["pictures"] == pictures
    assert sorted(map(str, tmp_path.iterdir())) == pictures


def a_directory(parent: Path) -> Path:
    (parent / "sub.png").mkdir()
    return parent / "sub.png"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (lambda directory: directory / "p.gif", "the suffix '.gif' names none of the formats"),
        (lambda directory: directory / "p", "use a name such as p.png"),
        (lambda directory: directory / "missing/p.png", "there is no directory"),
        (a_directory, "what is there is not a regular file"),
        (lambda _directory: Path("/proc/p.png"), "nothing can be written to /proc"),
    ],
)
def test_picture_is_refused_before_the_model_runs_when_it_cannot_be_written(
    atp_run: AtpRun,
    photos: list[Path],
    tmp_path: Path,
    target: Callable[[Path], Path],
    said: str,
) -> None:
    words = ("--image", photos[0], "--show-pruning", target(tmp_path))
    ran = atp_run("What?", *words, bundle=tmp_path / "no-bundle")
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


def test_picture_is_refused_when_there_is_nothing_to_draw(
    atp_run: AtpRun, export_bundle, photos: list[Path], tmp_path: Path
) -> None:
    words = ("--show-pruning", tmp_path / "p.png")
    assert "--show-pruning without a photo" in atp_run("What?", *words).err
    dense = export_bundle(tiny_config(), dense=True).bundle
    ran = atp_run("What?", "--image", photos[0], *words, bundle=dense)
    assert (ran.code, ran.out) == (2, "")
    assert "this bundle does not prune" in ran.err


# What is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no question"),
        ((" ",), "no question"),
        (("--chat", "What?"), "--chat with a question"),
        (("What?", "--image", "missing.png"), "image missing.png does not exist"),
        (("What?", "--image", "."), "image . is a directory"),
        (("What?", "--image", "https://a.org/b.png"), "https://a.org/b.png is a web address"),
        (("What?", "--temperature", "-1"), "temperature is -1"),
        (("What?", "--temperature", "nan"), "temperature is nan"),
        (("What?", "--temperature", "hot"), "argument --temperature: invalid float value"),
        (("What?", "--top-p", "1.5"), "top_p is 1.5"),
        (("What?", "--top-k", "-3"), "top_k is -3"),
        (("What?", "--seed", "-1"), "seed is -1"),
        (("What?", "--max-new-tokens", "0"), "max_new_tokens is 0"),
        (("What?", "--threads", "0"), "threads: 0"),
        (("What?", "--threads", "99999"), "threads: 99999"),
        (("What?", "--backend", "tpu"), "argument --backend: invalid choice: 'tpu'"),
        (("What?", "--backend", "tensorrt", "--threads", "2"), "threads: 2"),
        (("What?", "--stop", ""), "a stop string is empty"),
        (("What?", "--system", "<image>"), "the system prompt contains <image>"),
        (("What?", "--no-such-option"), "unrecognized arguments: --no-such-option"),
        (("What?", "Why?"), "unrecognized arguments: Why?"),
        (("caf\udce9?",), "the text has a character that is no Unicode text"),
    ],
)
def test_wrong_input_is_refused_with_code_2(
    atp_run: AtpRun, words: Sequence[str], said: str
) -> None:
    ran = atp_run(*words)
    assert (ran.code, ran.out) == (2, "")
    assert f"atp-run: {said}" in ran.err
    assert "\n  why: " in ran.err
    assert "\n  fix: " in ran.err
    assert atp_run(*words, "--json").document["error"]["exit_code"] == 2


@pytest.mark.parametrize("words", [("What?",), ("--chat",)])
def test_backend_that_is_not_installed_is_the_machines_fault(
    atp_run: AtpRun, monkeypatch: pytest.MonkeyPatch, words: Sequence[str]
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    ran = atp_run(*words, "--backend", "tensorrt")
    assert (ran.code, ran.out) == (3, "")
    assert "atp-run: TensorRT cannot be loaded" in ran.err
    assert "--backend onnxruntime" in ran.err


def test_backends_are_those_that_exist() -> None:
    assert backend_options._NAMES == BACKENDS


def test_bundle_is_refused_when_there_is_none(atp_run: AtpRun, tmp_path: Path) -> None:
    ran = atp_run("What?", bundle=tmp_path / "nowhere")
    assert (ran.code, ran.out) == (2, "")
    assert "nowhere: no such directory" in ran.err
