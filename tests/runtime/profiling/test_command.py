"""`atp-profile` with a question, and `atp-profile compare`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.runtime.latency.answering_bundle import write_answering, write_questions
from tests.runtime.profiling.conftest import MakeProfile

from atp_runtime.cli.profile import main as atp_profile
from atp_runtime.profiling import measure
from atp_runtime.profiling.measure import ProfilePlan, RunBy, measure_profile
from atp_runtime.profiling.profile_file import DENSE, PRUNED, read_profile, write_profile
from atp_runtime.profiling.timed_turn import Question

QUICK = ("--threads", "1", "--runs", "2", "--warmup", "1", "--new-tokens", "3", "--quiet")


@pytest.fixture(autouse=True)
def quick_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ceiling has tests of its own."""
    monkeypatch.setattr(measure, "measure_ceiling", lambda _threads: None)


def test_a_question_gives_a_table_and_three_files(
    answering: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = (str(answering), "--image", str(photo), *QUICK, "--output", str(out))
    assert atp_profile(words) == 0
    assert "select before 3" in capsys.readouterr().out
    assert sorted(it.name for it in out.iterdir()) == [
        "profile.csv",
        "profile.json",
        "report.html",
    ]
    profile = read_profile(out)
    assert set(profile.modes) == {DENSE, PRUNED}
    assert profile.asked.runs == 2
    assert profile.modes[PRUNED].visual_tokens < profile.modes[DENSE].visual_tokens == 64
    assert profile.modes[PRUNED].cache_bytes < profile.modes[DENSE].cache_bytes
    shares = profile.modes[PRUNED].shares
    assert shares is not None
    assert 0 < shares.selection < shares.prefill < 1
    assert profile.clock_seconds < 0.1 * profile.modes[PRUNED].first_token.median
    assert "data:image/jpeg" in (out / "report.html").read_text()


def test_questions_of_data_take_turns(
    answering: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_questions(tmp_path / "data", 4)
    words = (str(answering), "--data", str(data), "--samples", "3", *QUICK, "--json")
    assert atp_profile((*words, "--output", str(tmp_path / "out"))) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["asked"]["questions"] == 3
    assert document["complete"] is True


def test_a_bundle_that_does_not_prune_has_one_mode(photo: Path, tmp_path: Path) -> None:
    bundle = write_answering(tmp_path / "bundle", "keep_all", ({}, {}))
    words = (str(bundle), "--image", str(photo), *QUICK, "--output", str(tmp_path / "out"))
    assert atp_profile(words) == 0
    assert set(read_profile(tmp_path / "out").modes) == {DENSE}


def test_what_was_measured_before_ctrl_c_is_kept(answering: Path, photo: Path) -> None:
    def told(done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    plan = ProfilePlan((Question("what is it", (photo,)),), "photo", 3, runs=9, warm_up=1)
    measured = measure_profile(answering, plan, RunBy(threads=1), told)
    assert not measured.complete
    assert measured.profile.asked.runs == 2


def test_ctrl_c_before_anything_was_measured_ends_the_work(answering: Path, photo: Path) -> None:
    def told(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    plan = ProfilePlan((Question("what is it", (photo,)),), "photo", 3, runs=9, warm_up=1)
    with pytest.raises(KeyboardInterrupt):
        measure_profile(answering, plan, RunBy(threads=1), told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--runs", "0"), "runs 0"),
        (("--warmup", "-1"), "warm-up runs -1"),
        (("--new-tokens", "0"), "new tokens 0"),
        (("--tokens", "36"), "--tokens"),
        (("--data", "x.json"), "--data with --image"),
        (("--image", "missing.png"), "missing.png"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(
    answering: Path,
    photo: Path,
    tmp_path: Path,
    words: tuple[str, str],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    asked = (str(answering), "--image", str(photo), *QUICK, *words, "--output", str(out))
    assert atp_profile(asked) == 2
    assert told in capsys.readouterr().err
    assert not out.exists() or not list(out.iterdir())


def test_a_place_that_cannot_be_written_is_refused_before_measuring(
    answering: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    words = (str(answering), "--image", str(photo), "--output", str(tmp_path / "file" / "out"))
    assert atp_profile(words) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_compare_fails_on_slower_answers(
    make_profile: MakeProfile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    write_profile(before, make_profile(200.0, 100.0))
    write_profile(after, make_profile(200.0, 150.0))
    assert atp_profile(("compare", str(before), str(after))) == 1
    assert "pruned, each token: 50.0 % slower" in capsys.readouterr().err
    assert atp_profile(("compare", str(before), str(after), "--threshold", "60")) == 0
    capsys.readouterr()
    assert atp_profile(("compare", str(before), str(after), "--json")) == 1
    changes = {
        (it["mode"], it["name"]): it["slower"]
        for it in json.loads(capsys.readouterr().out)["differences"]
    }
    assert changes["pruned", "first token"] is True
    assert changes["dense", "first token"] is False


@pytest.mark.parametrize("threshold", ["-1", "nan", "inf"])
def test_a_threshold_that_is_none_is_refused(
    make_profile: MakeProfile, tmp_path: Path, threshold: str
) -> None:
    write_profile(tmp_path / "a.json", make_profile())
    words = ("compare", str(tmp_path / "a.json"), str(tmp_path / "a.json"))
    assert atp_profile((*words, "--threshold", threshold)) == 2
