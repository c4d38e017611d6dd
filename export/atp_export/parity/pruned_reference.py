"""A prompt and what follows it through the pruned PyTorch reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from atp_export.parity.measures import Array
from atp_export.parity.vision_pruning import Shown
from atp_models.reference import LlavaReference, PrunedStep
from atp_models.reference_layers import Scores, Survivors
from atp_runtime.chunk import Chunk
from atp_runtime.manifest import Manifest
from atp_runtime.segment_entry import Entry
from atp_runtime.tensor_names import MERGE_WEIGHTS, SCORES

Keep = Mapping[int, Survivors]


@dataclass(frozen=True, eq=False)
class PrunedReference:
    """A prompt through the pruned reference.

    Attributes:
        keep: By layer, what was kept before it.
        moments: What the steps are: "prefill", "decode" or "turn".
        steps: The prompt's, then one per chunk that follows.
    """

    keep: Keep
    moments: tuple[str, ...]
    steps: tuple[PrunedStep, ...]

    @property
    def drops(self) -> bool:
        """Whether fewer tokens reached the last layer than the first."""
        layers = self.steps[0].layers
        return layers[-1].entered.shape[1] < layers[0].entered.shape[1]


def run_reference(
    reference: LlavaReference, shown: Shown, manifest: Manifest, keep: Keep
) -> PrunedReference:
    """Runs a prompt.

    Args:
        reference: The checkpoint.
        shown: With or without images.
        manifest: Says where scores are computed.
        keep: By layer, what is kept before it.
    """
    points = [stage.pruning for stage in manifest.segments if stage.pruning]
    asking = {point.before_layer: point.queries for point in points}
    run = reference.pruned(asking, manifest.structure)
    prompt = shown.prompt
    ids = torch.from_numpy(prompt.ids)
    visual = ids == manifest.vision.image_token_id
    images = [image.places for image in shown.seen.images]
    chunk = Chunk.from_ids(prompt.ids, manifest.vision.image_token_id, images)
    places = torch.from_numpy(np.stack((chunk.image, chunk.row, chunk.column), axis=1))
    steps = [run.forward(reference.embed(ids, shown.features), visual, keep, places)]
    for _, text in prompt.following:
        hidden = reference.embed(torch.from_numpy(text))
        steps.append(run.forward(hidden, torch.zeros(len(text), dtype=torch.bool)))
    return PrunedReference(keep, prompt.moments, tuple(steps))


def entry_inputs(survivors: Survivors) -> dict[str, Array]:
    """What tells a segment's entry which tokens go on, by the names of its inputs."""
    place, rows = survivors.indices.numpy(), survivors.merged.numpy()
    entry = Entry(place, place[rows], survivors.shares.numpy())
    return {"keep_indices": entry.keep_indices, MERGE_WEIGHTS: entry.merge_weights}


def score_arrays(scores: Scores) -> dict[str, Array]:
    """Scores by the names of a graph's outputs."""
    return dict(zip(SCORES, (scores.own.numpy(), scores.cross.numpy()), strict=True))
