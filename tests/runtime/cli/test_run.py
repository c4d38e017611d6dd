import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from atp_models.random_configs import tiny_config
from atp_runtime.backends import BACKENDS
from atp_runtime.cli import backend_options
from atp_runtime.cli.run import main
from atp_runtime.generation import GenerationOptions
from atp_runtime.sampling import SamplingOptions
from atp_runtime.session import Session

SHORT = ("--max-new-tokens", "8", "--threads", "1")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, object]:
        return json.loads(self.out)


AtpRun = Callable[..., Outcome]


@pytest.fixture
def atp_run(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AtpRun:
    """Runs the command in this process, on the tiny bundle unless another is given."""

    def run(*words: object, bundle: Path = tiny_bundle, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = main([str(bundle), *map(str, words)])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def asked(tiny_bundle: Path) -> Callable[..., str]:
    """What the Python interface answers, in 8 tokens unless options say otherwise."""

    def ask(
        questions: Sequence[str],
        photos: Sequence[Path] = (),
        options: GenerationOptions | None = None,
        system: str | None = None,
    ) -> list[str]:
        with Session.open(tiny_bundle, threads=1) as session:
            conversation, texts = session.conversation(system), []
            for number, question in enumerate(questions):
                images = photos if number == 0 else ()
                chosen = options or GenerationOptions(8)
                texts.append(conversation.ask(question, images, chosen).text)
        return texts

    return ask


def images_of(photos: Sequence[Path]) -> list[object]:
    return [word for photo in photos for word in ("--image", photo)]


# One question


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


# Chat


def test_chat_answers_each_line_knowing_those_before(
    atp_run: AtpRun, asked: Callable[..., list[str]], photos: list[Path]
) -> None:
    ran = atp_run("--chat", "--image", photos[0], *SHORT, stdin=b"What?\n\n  Why? \nSo?")
    answers = asked(["What?", "Why?", "So?"], photos[:1])
    assert (ran.code, ran.out) == (0, "".join(f"{answer}\n" for answer in answers))
    assert ran.err.count("note: The pruning modules are untrained") == 1


def test_chat_goes_on_and_keeps_its_photos_when_a_question_fails(
    atp_run: AtpRun, asked: Callable[..., list[str]], photos: list[Path]
) -> None:
    too_long = b"?" * 4000
    stdin = b"\n".join([too_long, b"<image>", b"caf\xe9", b"What?", b"Why?"])
    ran = atp_run("--chat", "--image", photos[0], *SHORT, "--quiet", stdin=stdin)
    answers = asked(["What?", "Why?"], photos[:1])
    assert (ran.code, ran.out) == (2, "".join(f"{answer}\n" for answer in answers))
    assert re.findall(r"atp-run: (the \w+ \w+)", ran.err) == [
        "the prompt has",
        "the question contains",
        "the text has",
    ]


def test_chat_is_one_document_when_json_is_wanted(
    atp_run: AtpRun, asked: Callable[..., list[str]], photos: list[Path]
) -> None:
    ran = atp_run("--chat", "--image", photos[0], *SHORT, "--json", stdin=b"What?\n<image>\nWhy?\n")
    turns = ran.document["turns"]
    assert ran.code == 2
    assert [turn["question"] for turn in turns] == ["What?", "<image>", "Why?"]
    assert turns[1]["error"]["exit_code"] == 2
    answers = asked(["What?", "Why?"], photos[:1])
    assert [turn["answer"] for turn in turns if "answer" in turn] == answers


def test_chat_says_nothing_when_nothing_is_asked(atp_run: AtpRun) -> None:
    assert atp_run("--chat", *SHORT) == Outcome(0, "", "")


def test_chat_draws_only_the_turn_with_the_photos(
    atp_run: AtpRun, photos: list[Path], tmp_path: Path
) -> None:
    words = ("--chat", "--image", photos[0], *SHORT, "--show-pruning", tmp_path / "p.png")
    ran = atp_run(*words, "--json", stdin=b"What?\nWhy?\n")
    pictures = [turn["pictures"] for turn in ran.document["turns"]]
    assert pictures == [[str(tmp_path / "p.png")], []]


def test_chat_ends_at_once_when_a_photo_is_damaged(atp_run: AtpRun, tmp_path: Path) -> None:
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nxxxx")
    ran = atp_run("--chat", "--image", tmp_path / "damaged.png", *SHORT, stdin=b"What?\n")
    assert (ran.code, ran.out) == (2, "")
    assert "damaged.png" in ran.err


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


# What only a process of its own shows


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


LOADED_BY_HELP = """
import json, sys
from atp_runtime.cli.run import main
try:
    main(["--help"])
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def test_help_is_printed_without_loading_what_the_work_needs() -> None:
    words = [sys.executable, "-c", LOADED_BY_HELP]
    run = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(run.stderr)}
    assert "--show-pruning" in run.stdout
    assert not loaded & {"numpy", "onnxruntime", "PIL", "tokenizers", "safetensors", "jinja2"}


def start(*words: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "atp_runtime.cli.run", *map(str, words)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_answer_streams_and_ends_with_130_when_ctrl_c_comes(tiny_bundle: Path) -> None:
    with start(tiny_bundle, "What?", "--max-new-tokens", "2000", "--threads", "1") as process:
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"atp-run: interrupted" in err
    assert b"Traceback" not in err


def test_chat_ends_with_130_when_ctrl_c_comes_between_questions(tiny_bundle: Path) -> None:
    with start(tiny_bundle, "--chat", *SHORT) as process:
        process.stdin.write(b"What?\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_answer_ends_quietly_when_its_reader_goes_away(tiny_bundle: Path) -> None:
    with start(tiny_bundle, "What?", "--max-new-tokens", "2000", "--quiet") as process:
        assert process.stdout.read(1)
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (0, b"")
