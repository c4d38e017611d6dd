"""SparseVLM's counts by rank against an independent reading: lambda (n - rank) tokens go."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from atp_export.policies import make_policy
from atp_runtime.errors import InputError
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import PointSelector, VisualTokens

FEW = np.finfo(np.float32).eps


def patterns(count: int = 200) -> Iterator[tuple[np.ndarray, tuple[range, ...]]]:
    """Rows of attention to two tokens of text, one or two images, and text; ranks below the rows'.

    Among them ties, a single token, a single row and rows that are all alike.
    """
    random = np.random.default_rng(0)
    for number in range(count):
        sizes = [1] if number % 10 == 1 else list(random.integers(1, 40, size=1 + number % 2))
        ends = 2 + np.cumsum(sizes)
        images = tuple(
            range(end - size, end) for size, end in zip(sizes, ends.tolist(), strict=True)
        )
        rows = int(random.integers(1, 9))
        basis = random.random((1 if number % 7 == 0 else int(random.integers(1, 5)), ends[-1] + 6))
        basis = np.round(3 * basis) if number % 4 == 0 else basis
        attention = random.random((rows, len(basis))) @ basis + 0.1 * (number % 4 != 0)
        yield (attention / attention.sum(1, keepdims=True)).astype(np.float32), images


def point(redundant: float) -> PruningPoint:
    settings = {"redundant": redundant, "layers": [3], "recycle": False}
    (made,) = make_policy("sparsevlm", settings, "here").points(32)
    return made


def ranked(rows: np.ndarray) -> int:
    values = np.linalg.svd(rows.astype(np.float64), compute_uv=False)
    return sum(value > values[0] * max(rows.shape) * FEW for value in values)


@pytest.mark.parametrize("redundant", [0.0, 0.3, 1.0])
def test_what_is_beyond_the_rank_goes(redundant: float) -> None:
    select = PointSelector(point(redundant), {})
    for rows, images in patterns():
        index = np.array([at for image in images for at in image])
        number = np.repeat(np.arange(len(images)), [len(image) for image in images])
        shown = VisualTokens(index, number, index, index, attention=lambda r=rows, i=index: r[:, i])
        cross = rows.mean(axis=0)
        kept = select(np.zeros_like(cross), cross, True, shown).kept
        wanted = set()
        for image in images:
            mine = list(image)
            gone = int(redundant * (len(mine) - ranked(rows[:, mine])) + 0.5)
            best = sorted(mine, key=lambda at: (-cross[at], at))
            wanted |= set(best[: len(mine) - gone])
        assert set(index[kept].tolist()) == wanted


def test_nobody_asked_means_nothing_is_redundant() -> None:
    index = np.arange(9)
    shown = VisualTokens(index, np.zeros(9, dtype=np.int64), index, index)
    selection = PointSelector(point(1.0), {})(
        np.zeros(9, np.float32), np.zeros(9, np.float32), False, shown
    )
    assert selection.kept.all()


def test_a_graph_that_gives_no_rows_is_refused() -> None:
    plain = PruningPoint(3, "top_k", {"redundant": 0.5, "score": "cross"})
    with pytest.raises(InputError, match="row of attention"):
        PointSelector(plain, {})


@pytest.mark.parametrize(
    "settings",
    [{"redundant": 1.5}, {"redundant": -0.1}, {"redundant": 0.5, "keep": [9]}],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError):
        make_policy("sparsevlm", settings, "here")
