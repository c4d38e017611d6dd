"""What a bundle says of a photo that became a few cells, and what becomes of it on the host."""

from __future__ import annotations

import numpy as np
import pytest

from atp_runtime.cell_queries import CellQueries


def test_all_tokens_go_on_and_lie_nowhere() -> None:
    rule, features = CellQueries(2), np.arange(12.0).reshape(4, 3)
    left = rule.reduce({"image_features": features})
    assert left.place.tolist() == [-1, -1, -1, -1]
    np.testing.assert_array_equal(left.of(features), features)
    assert rule.most(576) == 4


def test_no_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="grid is 0"):
        CellQueries(0)
