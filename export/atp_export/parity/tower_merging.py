"""What a bundle merges between its tower's layers, for the reference to do the same.

Which patches stay is the bundle's choice, as of rules behind the tower; by what it ranks and weighs
them is compared.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from atp_models.reference_vision import ClassToken, TowerMerged
from atp_runtime.cell_queries import CellQueries
from atp_runtime.manifest import Manifest
from atp_runtime.reduction import Given
from atp_runtime.tensor_names import TOWER_KEPT
from atp_runtime.tower_merging import CLASS, TowerMerge
from atp_runtime.vision_stages import read_vision_rule

_SEED = 20309


def said(hidden: int) -> npt.NDArray[np.float32]:
    """The mean embedding [hidden] of what is asked about all images."""
    return np.random.default_rng(_SEED).normal(size=hidden).astype(np.float32)


def merged_in(manifest: Manifest, outputs: Given) -> tuple[TowerMerged, ...]:
    """What the vision stage merged; nothing where it does not merge.

    Args:
        manifest: The bundle's.
        outputs: The stage's, with the axis of images.
    """
    rule = read_vision_rule(manifest)
    if not isinstance(rule, TowerMerge):
        return ()
    kept = rule.steps(outputs[TOWER_KEPT])
    patches = (manifest.vision.tokens - rule.prefix, *rule.keep[:-1])
    asked = None
    if rule.score == CLASS:
        asked = ClassToken(rule.text, torch.from_numpy(said(manifest.text.hidden)))
    steps = zip(rule.layers, map(torch.from_numpy, kept), patches, strict=True)
    return tuple(TowerMerged(*step, asked) for step in steps)


def told_to(manifest: Manifest) -> torch.Tensor | None:
    """What a compressor before the projector is told of the question [hidden], if there is one."""
    compresses = isinstance(read_vision_rule(manifest), CellQueries)
    return torch.from_numpy(said(manifest.text.hidden)) if compresses else None


def merge_layers(manifest: Manifest) -> tuple[int, ...]:
    """Behind which layers of the tower patches are merged."""
    rule = read_vision_rule(manifest)
    return rule.layers if isinstance(rule, TowerMerge) else ()
