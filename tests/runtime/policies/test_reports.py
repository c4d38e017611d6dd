"""What a comparison shows, of numbers made up."""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_runtime.evaluation.comparison import ComparedRun, Difference
from atp_runtime.evaluation.intervals import Estimate
from atp_runtime.evaluation.machine import this_machine
from atp_runtime.policies.chart import comparison_svg
from atp_runtime.policies.result import FORMAT, SCHEMA_VERSION, Comparison, policy_results
from atp_runtime.policies.tables import comparison_csv, comparison_markdown
from atp_runtime.policies.timing import Times

SPACE = "{http://www.w3.org/2000/svg}"
RUNS = {
    "dense": ComparedRun(
        "dense", "bundle", 576.0, 40, Estimate(0.8, 0.65, 0.9), {"what": 0.9, "where": 0.7}, None
    ),
    "fastv ratio=0.75": ComparedRun(
        "fastv",
        "bundle",
        172.8,
        40,
        Estimate(0.6, 0.45, 0.73),
        {"what": 0.5, "where": 0.7},
        Difference(Estimate(-0.2, -0.33, -0.07), 1, 9),
    ),
}
TIMES = {
    "dense": Times((0.8, 1.0, 0.9), (0.05, 0.04, 0.03), 48 * 2**20, 150.0),
    "fastv ratio=0.75": Times((0.3, 0.2, 0.4), (0.02, 0.02, 0.05), 16 * 2**20, 60.0),
}


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return Comparison(
        FORMAT,
        SCHEMA_VERSION,
        "llava",
        "fp32",
        "scenes.json",
        "exact match",
        40,
        3,
        16,
        "onnxruntime",
        this_machine(2),
        policy_results(RUNS, TIMES),
    )


def test_times_are_medians_and_speed_is_told_from_the_first(comparison: Comparison) -> None:
    dense, fastv = comparison.results
    assert dense.first_token_seconds == 0.9
    assert fastv.first_token_seconds == 0.3
    assert fastv.quicker == pytest.approx(3)
    assert dense.tokens_per_second == pytest.approx(25)
    assert fastv.tokens_per_second == pytest.approx(50)


def test_the_table_has_a_row_per_policy_and_per_kind(comparison: Comparison) -> None:
    text = comparison_markdown(comparison)
    row = (
        "| fastv ratio=0.75 | 60.0 (45.0 to 73.0) | -20.0 (-33.0 to -7.0) | 172.8 | 300 | 380 | "
        "3.00 | 50.0 | 16.0 | 60.0 |"
    )
    assert row in text
    assert "| what | 90.0 | 50.0 |" in text
    assert "40 questions" in text
    assert "2 threads" in text


def test_the_spreadsheet_says_the_same(comparison: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(comparison_csv(comparison))))
    assert [row["policy"] for row in rows] == list(RUNS)
    assert float(rows[1]["quicker"]) == pytest.approx(3)
    assert float(rows[1]["cache_bytes"]) == pytest.approx(16 * 2**20)
    without = replace(comparison.results[0], visual_tokens=None)
    (row,) = csv.DictReader(io.StringIO(comparison_csv(replace(comparison, results=(without,)))))
    assert row["visual_tokens"] == ""


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0.001, 60), st.floats(0.001, 1)),
        min_size=1,
        max_size=9,
    )
)
def test_the_picture_shows_every_policy_inside_all_four_charts(
    comparison: Comparison, numbers: list[tuple[float, float, float]]
) -> None:
    results = tuple(
        replace(
            comparison.results[0],
            policy=f"policy <{number}>",
            score=Estimate(score, score, score),
            first_token_seconds=seconds,
            tokens_per_second=1 / token,
        )
        for number, (score, seconds, token) in enumerate(numbers)
    )
    root = ET.fromstring(comparison_svg(replace(comparison, results=results)))
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    charts = root.findall(f"{SPACE}g")
    assert len(charts) == 4
    for chart in charts:
        dots = chart.findall(f"{SPACE}circle")
        assert len(dots) == len(results)
        for dot in dots:
            assert 0 < float(dot.attrib["cx"]) < width
            assert 0 < float(dot.attrib["cy"]) < height / 4
        labels = {it.text: it.attrib for it in chart.findall(f"{SPACE}text")}
        for result in results:
            assert 0 < float(labels[result.policy]["x"]) < width
