"""`atp-eval compare CHECKPOINT DATA --policies …`: a tiny checkpoint, really exported and asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atp_runtime.cli.eval import main as atp_eval
from atp_runtime.evaluation.json_files import read_declared
from atp_runtime.policies.result import Comparison

POLICIES = ["dense", "atp", "fastv:layer=1:ratio=0.75", "vtw:layer=1"]
TIMES = ["--timed", "2", "--rounds", "2", "--new-tokens", "3"]
LAYERS, TOKENS = 4, 16


@pytest.fixture(scope="module")
def data(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six questions, of two kinds."""
    records = [
        {
            "id": f"{place}-{number}",
            "image": str(photo),
            "kind": ("what", "where")[number],
            "conversations": [
                {"from": "human", "value": f"<image>\n{text}"},
                {"from": "gpt", "value": "nobody knows"},
            ],
        }
        for place, photo in enumerate(photos)
        for number, text in enumerate(["What is this?", "Where is it?"])
    ]
    file = tmp_path_factory.mktemp("data") / "questions.json"
    file.write_text(json.dumps(records))
    return file


@pytest.fixture(scope="module")
def output(tiny: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one comparison."""
    out = tmp_path_factory.mktemp("compared") / "out"
    words = [
        str(tiny.checkpoint),
        str(data),
        "--output",
        str(out),
        "--precision",
        "fp32",
        "--quiet",
    ]
    assert atp_eval(["compare", *words, *TIMES, "--policies", *POLICIES]) == 0
    return out


@pytest.fixture(scope="module")
def found(output: Path) -> Comparison:
    return read_declared(Comparison, output / "comparison.json", fix="")


@pytest.mark.slow
def test_tokens_caches_and_arithmetic_are_what_the_policies_promise(found: Comparison) -> None:
    dense, _, fastv, vtw = found.results
    assert [it.policy for it in found.results] == [it.replace(":", " ") for it in POLICIES]
    assert dense.visual_tokens == TOKENS
    # One layer sees all of them, three a quarter of them, or none.
    assert fastv.visual_tokens == pytest.approx((TOKENS + 3 * TOKENS / 4) / LAYERS)
    assert vtw.visual_tokens == pytest.approx(TOKENS / LAYERS)
    saved = dense.cache_bytes - vtw.cache_bytes
    assert dense.cache_bytes - fastv.cache_bytes == pytest.approx(saved * 3 / 4)
    assert vtw.gflops < fastv.gflops < dense.gflops


@pytest.mark.slow
def test_differences_and_speed_are_told_from_the_first(found: Comparison) -> None:
    dense, *others = found.results
    assert dense.difference is None
    assert dense.quicker == 1
    for it in others:
        assert it.difference is not None
        assert it.difference.mean == pytest.approx(it.score.mean - dense.score.mean)
        assert it.quicker == pytest.approx(dense.first_token_seconds / it.first_token_seconds)
    assert (found.asked, found.timed) == (6, 4)


@pytest.mark.slow
def test_run_again_it_exports_and_asks_nothing_anew(
    tiny: Any, data: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Answers hold the times they took, so no two are the same.
    before = {path: path.read_text() for path in output.rglob("answers.jsonl")}
    manifests = {path: path.stat().st_mtime_ns for path in output.rglob("manifest.json")}
    words = [str(tiny.checkpoint), str(data), "--output", str(output), "--precision", "fp32"]
    assert atp_eval(["compare", *words, *TIMES, "--json", "--policies", *POLICIES[:2]]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [it["policy"] for it in document["results"]] == POLICIES[:2]
    assert {path: path.stat().st_mtime_ns for path in manifests} == manifests
    assert {path: path.read_text() for path in before} == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param(
            ["--policies", "dense", "best"], "unknown policy 'best'", marks=pytest.mark.slow
        ),
        (["--policies", "dense"], "at least two"),
        (["--policies", "dense", "atp", "--rounds", "0"], "rounds 0"),
        (["--policies", "dense", "atp", "--new-tokens", "1"], "new tokens 1"),
        (["--policies", "dense", "atp", "--timed", "0"], "--timed 0"),
        (["--policies", "dense", "atp", "--limit", "0"], "--limit 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tiny: Any,
    data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    told: str,
) -> None:
    out = tmp_path / "out"
    common = ["compare", str(tiny.checkpoint), str(data), "--output", str(out), "--quiet"]
    assert atp_eval([*common, "--precision", "fp32", *words]) == 2
    assert told in capfd.readouterr().err
    assert not (out / "comparison.json").exists()
