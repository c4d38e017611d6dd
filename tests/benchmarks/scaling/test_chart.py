import csv
import io
from xml.etree import ElementTree as ET

from tests.benchmarks.scaling.chart import curve_csv, curve_svg
from tests.benchmarks.scaling.curves import CURVES, Point

POINTS = [Point(8, 0.1, 0.02), Point(16, 0.25, 0.04)]


def test_csv_has_a_line_for_every_point_in_milliseconds() -> None:
    rows = list(csv.DictReader(io.StringIO(curve_csv(POINTS))))

    assert rows == [
        {"value": "8", "first_token_ms": "100", "later_tokens_ms": "20"},
        {"value": "16", "first_token_ms": "250", "later_tokens_ms": "40"},
    ]


def test_picture_stands_by_itself_and_tells_every_point() -> None:
    root = ET.fromstring(curve_svg(CURVES["layers"], POINTS))

    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    titles = [it.text for it in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == [
        "first token: 8, 100.0 ms",
        "first token: 16, 250.0 ms",
        "32 more tokens: 8, 20.0 ms",
        "32 more tokens: 16, 40.0 ms",
    ]
    assert "layers" in [it.text for it in root.iter("{http://www.w3.org/2000/svg}text")]
