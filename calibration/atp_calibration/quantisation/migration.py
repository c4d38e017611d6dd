"""Moves scales between layers: what divides an activation multiplies the weights that read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from atp_calibration.quantisation.choice import Choice, migration_scale
from atp_calibration.quantisation.groups import Group
from atp_calibration.quantisation.int4 import Int4Rounding
from atp_calibration.quantisation.layer_input import LayerInput
from atp_calibration.quantisation.search import weight_rows

Float32 = npt.NDArray[np.float32]


@dataclass
class Migration:
    """What happens to the stored numbers of a stage.

    Attributes:
        rows: What the rows of a weight [in, out] are multiplied by, float32 [in], by its name.
        columns: What the columns of a weight [in, out] are divided by, float32 [out], by its name.
        vectors: What a norm's weight or a bias is divided by, likewise.
        inputs: What is seen of the input of a layer, by its name.
    """

    rows: dict[str, Float32] = field(default_factory=dict)
    columns: dict[str, Float32] = field(default_factory=dict)
    vectors: dict[str, Float32] = field(default_factory=dict)
    inputs: dict[str, LayerInput] = field(default_factory=dict)

    def add(
        self,
        choice: Choice,
        group: Group,
        seen: LayerInput,
        weights: Mapping[str, npt.NDArray[np.floating]],
    ) -> None:
        """Adds what was chosen for a group.

        Args:
            choice: The group's.
            group: With a fold, if the choice has an alpha.
            seen: Its input.
            weights: [in, out] by the names of its layers.
        """
        self.inputs.update(dict.fromkeys(group.layers, seen))
        if choice.alpha is None:
            return
        assert group.fold is not None  # noqa: S101 - else there was nothing to choose
        rows = weight_rows([weights[name] for name in group.layers])
        heads = group.fold.heads
        scale = migration_scale(choice.precision, choice.alpha, seen, rows, heads)
        self.rows.update(dict.fromkeys(group.layers, scale))
        before = scale if heads is None else heads.columns(scale)
        self.vectors.update(dict.fromkeys(group.fold.vectors, before))
        if group.fold.columns:
            self.columns[group.fold.columns] = before

    def applied(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A stored tensor as it is behind the migration; float32 if that changes it."""
        if name in self.vectors:
            return values.astype(np.float32) / self.vectors[name]
        if name not in self.rows and name not in self.columns:
            return values
        changed = values.astype(np.float32)
        if name in self.rows:
            changed *= self.rows[name][:, None]
        if name in self.columns:
            changed /= self.columns[name]
        return changed

    def int4_rounding(self, name: str, block: int) -> Int4Rounding:
        """Rounds the weight of a layer, as it is behind the migration."""
        seen = self.inputs[name]
        scale = self.rows.get(name, np.ones(seen.channels, np.float32))
        return Int4Rounding(seen, scale, block)
