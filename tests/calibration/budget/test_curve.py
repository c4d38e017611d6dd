from __future__ import annotations

import csv
import io

import numpy as np

from atp_calibration.budget.curve import CurvePoint, curve_csv, draw_curve


def point(label: str, tokens: float, score: float, ms: float | None = None) -> CurvePoint:
    return CurvePoint(label, tokens, 576 / tokens, ms, score, max(score - 0.1, 0), score + 0.05)


POINTS = [point("fitted", 144, 0.7), point("unpruned", 576, 0.8, 12.5), point("x 0.5", 72, 0.4)]


def test_the_table_falls_from_unpruned_to_the_tightest_budget() -> None:
    rows = list(csv.DictReader(io.StringIO(curve_csv(POINTS))))
    assert [row["label"] for row in rows] == ["unpruned", "fitted", "x 0.5"]
    assert rows[0]["first_token_ms"] == "12.50"
    assert rows[1]["first_token_ms"] == ""
    assert float(rows[1]["score"]) == 0.7


def colours(points: list[CurvePoint]) -> set[tuple[int, int, int]]:
    picture = np.asarray(draw_curve(points, "title", "accuracy"))
    return set(map(tuple, picture.reshape(-1, 3).tolist()))


def test_the_fitted_point_is_marked_in_a_colour_of_its_own() -> None:
    assert len(colours(POINTS) - colours(POINTS[1:])) >= 1


def test_a_higher_score_is_drawn_higher() -> None:
    def height(score: float) -> float:
        picture = np.asarray(draw_curve([point("fitted", 144, score)], "", "")).astype(int)
        background = np.asarray(draw_curve([point("x 1", 144, score)], "", "")).astype(int)
        rows, _ = np.nonzero(np.abs(picture - background).sum(axis=2))
        return float(np.median(rows))

    assert height(0.9) < height(0.5) < height(0.1)
