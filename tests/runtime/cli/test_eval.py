import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.runtime.cli.command_line import Outcome

from atp_runtime.cli import eval as atp_eval_module
from atp_runtime.cli.eval import main
from atp_runtime.evaluation.formats.registry import FORMATS
from atp_runtime.evaluation.pruning_choice import RULES

SHORT = ("--max-new-tokens", "4", "--threads", "1")
AtpEval = Callable[..., Outcome]


@pytest.fixture
def data(photos: list[Path], tmp_path: Path) -> Path:
    """Two questions about each of three photos."""
    path = tmp_path / "scenes.json"
    records = [
        {
            "id": f"{photo.stem}-{question}",
            "image": str(photo),
            "kind": question,
            "conversations": [
                {"from": "human", "value": f"<image>\nIs it {question}?"},
                {"from": "gpt", "value": "yes"},
            ],
        }
        for photo in photos
        for question in ("red", "blue")
    ]
    path.write_text(json.dumps(records))
    return path


@pytest.fixture
def atp_eval(
    tiny_bundle: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> AtpEval:
    """Runs the command in this process, on the tiny bundle and the data unless others are given."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object, bundle: Path = tiny_bundle, data: Path = data) -> Outcome:
        code = main([str(bundle), str(data), *map(str, words)])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> AtpEval:
    def run(*words: object) -> Outcome:
        code = main(["compare", *map(str, words)])
        return Outcome(code, *capsys.readouterr())

    return run


def test_scores_are_printed_and_report_and_answers_written(
    atp_eval: AtpEval, tmp_path: Path
) -> None:
    ran = atp_eval(*SHORT)
    directory = tmp_path / "eval-bundle-scenes"
    assert ran.code == 0
    assert sorted(path.name for path in directory.iterdir()) == [
        "answers.jsonl",
        "report.json",
        "report.md",
        "run.json",
    ]
    assert ran.out.startswith("| kind | n | exact match |")
    assert [line.split("|")[1].strip() for line in ran.out.splitlines()[2:5]] == [
        "all",
        "blue",
        "red",
    ]
    assert ran.out.strip() in (directory / "report.md").read_text()
    assert "report: eval-bundle-scenes/report.md" in ran.err
    assert "6/6, score 0.0 %" in ran.err


def test_nothing_but_results_is_printed_when_quiet(atp_eval: AtpEval) -> None:
    ran = atp_eval(*SHORT, "--quiet")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("| kind |")


def test_report_is_one_document_when_json_is_wanted(atp_eval: AtpEval, tmp_path: Path) -> None:
    ran = atp_eval(*SHORT, "--json", "--output", "out")
    assert ran.code == 0
    assert ran.document == json.loads((tmp_path / "out/report.json").read_text())
    assert ran.document["asked"] == 6


def test_options_reach_the_run(atp_eval: AtpEval, photos: list[Path], tmp_path: Path) -> None:
    words = (
        "--select random --keep 9,4,1 --limit 4 --seed 7 --format llava --prompt-suffix Briefly."
    )
    run = atp_eval(*SHORT, *words.split(), "--images", tmp_path, "--json").document["run"]
    assert (run["select"], run["keep"], run["limit"], run["seed"]) == ("random", [9, 4, 1], 4, 7)
    assert (run["prompt_suffix"], run["max_new_tokens"], run["images"]) == ("Briefly.", 4, True)
    blind = atp_eval(*SHORT, "--without-images", "--output", "blind", "--json").document
    assert (blind["run"]["images"], blind["tokens"]) == (False, None)


def test_runs_are_compared(atp_eval: AtpEval, compare: AtpEval) -> None:
    atp_eval(*SHORT, "--output", "dense", "--select", "keep_all")
    atp_eval(*SHORT, "--output", "pruned")
    ran = compare("dense", "pruned/report.json")
    assert ran.code == 0
    assert [line.split("|")[1].strip() for line in ran.out.splitlines()[2:4]] == ["dense", "pruned"]
    runs = compare("dense", "pruned", "--json").document["runs"]
    assert [run["name"] for run in runs] == ["dense", "pruned"]
    assert runs[0]["mean_tokens"] == 16
    assert runs[1]["difference"]["score"]["mean"] == 0


def test_other_run_in_the_same_directory_is_refused_until_it_may_start_afresh(
    atp_eval: AtpEval,
) -> None:
    atp_eval(*SHORT)
    ran = atp_eval(*SHORT, "--prompt-suffix", "Briefly.")
    assert (ran.code, ran.out) == (2, "")
    assert "that had prompt_suffix '', now 'Briefly.'" in ran.err
    assert "--restart" in ran.err
    assert atp_eval(*SHORT, "--prompt-suffix", "Briefly.", "--restart").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--format", "mme"), "argument --format: invalid choice"),
        (("--format", "pope"), "is not of the format pope"),
        (("--select", "best"), "argument --select: invalid choice"),
        (("--select", "random"), "--select random without --keep"),
        (("--keep", "3,2,1"), "--keep with the rule bundle"),
        (("--select", "random", "--keep", "3,x"), "argument --keep: '3,x' is not a list"),
        (("--select", "random", "--keep", "3,2"), "--keep has 2 numbers"),
        (("--limit", "0"), "--limit 0"),
        (("--limit", "few"), "argument --limit: invalid int value"),
        (("--seed", "-1"), "--seed -1"),
        (("--max-new-tokens", "0"), "--max-new-tokens 0"),
        (("--threads", "0"), "threads: 0"),
        (("--backend", "tpu"), "argument --backend: invalid choice: 'tpu'"),
        (("--backend", "tensorrt", "--threads", "2"), "threads: 2"),
        (("--split", "val"), "--split with LLaVA conversations"),
        (("--no-circular",), "--no-circular with LLaVA conversations"),
        (("--no-such-option",), "unrecognized arguments: --no-such-option"),
    ],
)
def test_wrong_input_is_refused_with_code_2(
    atp_eval: AtpEval, words: Sequence[str], said: str, tmp_path: Path
) -> None:
    ran = atp_eval(*words)
    assert (ran.code, ran.out) == (2, "")
    assert f"atp-eval: {said}" in ran.err or said in ran.err.splitlines()[0]
    assert "\n  why: " in ran.err
    assert "\n  fix: " in ran.err
    assert not (tmp_path / "eval-bundle-scenes").exists()
    assert atp_eval(*words, "--json").document["error"]["exit_code"] == 2


def test_missing_files_are_refused(atp_eval: AtpEval, tmp_path: Path, compare: AtpEval) -> None:
    assert "nothing.json does not exist" in atp_eval(data=tmp_path / "nothing.json").err
    assert "nowhere: no such directory" in atp_eval(bundle=tmp_path / "nowhere").err
    assert "report.json does not exist" in compare(tmp_path).err
    assert compare().code == 2


def test_choices_are_those_that_exist() -> None:
    assert set(atp_eval_module.FORMATS) == set(FORMATS)
    assert set(atp_eval_module._RULES) == set(RULES)


# What only a process of its own shows


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


LOADED_BY_HELP = """
import json, sys
from atp_runtime.cli.eval import main
try:
    main(sys.argv[1:])
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("words", [["--help"], ["compare", "--help"]])
def test_help_is_printed_without_loading_what_the_work_needs(words: list[str]) -> None:
    command = [sys.executable, "-c", LOADED_BY_HELP, *words]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(run.stderr)}
    assert "usage: atp-eval" in run.stdout
    assert not loaded & {"numpy", "onnxruntime", "PIL", "tokenizers", "safetensors", "jinja2"}


def test_run_ends_with_130_when_ctrl_c_comes_and_goes_on_from_there(
    tiny_bundle: Path, photos: list[Path], tmp_path: Path
) -> None:
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "yes"}]
    records = [
        {"id": str(n), "image": str(photos[n % 3]), "conversations": turns} for n in range(3000)
    ]
    (tmp_path / "many.json").write_text(json.dumps(records))
    words = [tiny_bundle, "many.json", "--threads", "1", "--max-new-tokens", "2", "--output", "out"]
    command = [sys.executable, "-m", "atp_runtime.cli.eval", *map(str, words)]
    process = subprocess.Popen(command, env=environment(), cwd=tmp_path, stderr=subprocess.PIPE)
    answers = tmp_path / "out/answers.jsonl"
    with process:
        while not (answers.is_file() and answers.stat().st_size):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"it goes on behind the last answer" in err
    assert b"Traceback" not in err
    text = answers.read_text()
    assert text.endswith("\n")
    assert 0 < len([json.loads(line) for line in text.splitlines()]) < 3000
    assert not (tmp_path / "out/report.json").exists()
