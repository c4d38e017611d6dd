"""What is written about a profile: for terminals, spreadsheets and browsers."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from PIL import Image
from tests.runtime.profiling.conftest import MakeProfile

from atp_runtime.profiling.csv_file import profile_csv
from atp_runtime.profiling.html_report import html_report
from atp_runtime.profiling.profile_file import ProfiledBundle
from atp_runtime.profiling.sensors import SensorRow
from atp_runtime.profiling.text_report import text_report

PICTURE = Image.new("RGB", (40, 20), (200, 30, 30))


def svgs(page: str) -> list[ET.Element]:
    return [ET.fromstring(it) for it in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_the_terminal_shows_both_modes_side_by_side(make_profile: MakeProfile) -> None:
    lines = text_report(make_profile(200.0, 100.0))
    assert max(map(len, lines)) <= 100
    segment = next(line for line in lines if "segment_1" in line)
    assert segment.split() == ["segment_1", "64", "25.00", "50", "%", "16", "12.50", "50", "%"]
    first = next(line for line in lines if line.startswith("first token"))
    assert first.split()[2:] == ["200.00", "100.00"]
    assert any("2.00 times sooner" in line for line in lines)


def test_the_host_s_shares_are_told_at_the_terminal_and_on_the_page(
    make_profile: MakeProfile,
) -> None:
    profile = make_profile(200.0, 100.0)
    told = (
        "outside the backend 0.50 % of prefill, 1.20 % of decode; selection 1.00 %, gather 0.04 %"
    )
    assert [line for line in text_report(profile) if "outside" in line] == [
        f"{mode}: {told}" for mode in ("dense", "pruned")
    ]
    assert f"pruned: {told}" in html_report(profile, [])


def test_a_profile_of_an_earlier_version_tells_no_shares(make_profile: MakeProfile) -> None:
    profile = make_profile(200.0, None)
    mode = replace(profile.modes["dense"], shares=None)
    assert not any("outside" in it for it in text_report(replace(profile, modes={"dense": mode})))


def test_a_dense_bundle_has_one_column(make_profile: MakeProfile) -> None:
    lines = text_report(make_profile(200.0, None))
    assert not any("pruned" in line or "sooner" in line for line in lines)


def test_a_spreadsheet_has_a_line_for_each_part(make_profile: MakeProfile) -> None:
    lines = list(csv.DictReader(io.StringIO(profile_csv(make_profile(200.0, 100.0)))))
    assert len(lines) == 12
    segment = next(it for it in lines if it["mode"] == "pruned" and it["part"] == "segment_1")
    assert float(segment["median_ms"]) == pytest.approx(12.5)
    assert float(segment["share_of_ceiling"]) == pytest.approx(0.5)
    photo = next(it for it in lines if it["part"] == "photo")
    assert (photo["gflops"], photo["tokens_entering"]) == ("", "")


def test_the_page_needs_nothing_else(make_profile: MakeProfile) -> None:
    page = html_report(make_profile(), [PICTURE])
    assert "http" not in page
    assert "<script" not in page
    assert "<link" not in page
    assert page.count("data:image/jpeg;base64,") == 1


def test_the_page_has_every_chart_and_their_numbers(make_profile: MakeProfile) -> None:
    page = html_report(make_profile(200.0, 100.0), [PICTURE])
    charts = svgs(page)
    told = [chart.get("aria-label") for chart in charts]
    assert told == [
        "what the time to the first token consists of",
        "tokens that each segment runs",
        "speed of the stages against the machine's limits",
        "memory during an answer",
    ]
    titles = [it.text for it in charts[0].iter("title")]
    assert "prefill segment_1: 12.50 ms" in titles
    assert not any("decode" in str(title) for title in titles)
    assert "2.00 x" in page


def test_bars_are_as_long_as_their_times(make_profile: MakeProfile) -> None:
    (waterfall, *_) = svgs(html_report(make_profile(200.0, 100.0), []))
    widths = {it.find("title").text: float(it.get("width")) for it in waterfall.iter("rect")}
    dense, pruned = widths["prefill segment_0: 100.00 ms"], widths["prefill segment_0: 50.00 ms"]
    assert dense == pytest.approx(2 * pruned, rel=0.01)


def test_without_a_ceiling_or_memory_their_charts_are_left_away(
    make_profile: MakeProfile,
) -> None:
    profile = make_profile(pruned=None, ceiling=None)
    assert len(svgs(html_report(profile, []))) == 3


def test_sensors_are_told_where_there_are_some(make_profile: MakeProfile) -> None:
    sensors = (
        SensorRow("VDD_IN", "W", 8.0, 9.5, 12.0, None),
        SensorRow("gpu-thermal", "°C", None, None, None, "Permission denied"),
        SensorRow("gpu-throttle", "cooling", 0.0, 0.5, 2.0, None),
    )
    profile = make_profile(sensors=sensors)
    lines = text_report(profile)
    assert "VDD_IN: 9.5 W, 8.0 to 12.0" in lines
    assert "gpu-thermal: could not be read (Permission denied)" in lines
    assert "gpu-throttle set in: up to 2, on average 0.5" in lines
    assert "VDD_IN: 9.5 W" in html_report(profile, [])


def test_names_are_no_markup(make_profile: MakeProfile) -> None:
    name = "<b>&demo"
    page = html_report(make_profile(bundle=ProfiledBundle(name, "a", "float32", 4, 1)), [])
    assert name not in page
    assert "&lt;b&gt;&amp;demo" in page
