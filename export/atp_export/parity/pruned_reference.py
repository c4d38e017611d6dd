"""A prompt and what follows it through the pruned PyTorch reference."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from atp_export.parity.measures import Array
from atp_export.parity.vision_pruning import Shown
from atp_models.reference import LlavaReference, PrunedStep
from atp_models.reference_layers import LayerStep, Survivors, Tokens
from atp_runtime.chunk import Chunk
from atp_runtime.manifest import Manifest
from atp_runtime.segment_entry import Entry
from atp_runtime.tensor_names import MERGE_WEIGHTS, ROUTE_WEIGHTS, ROUTER_SCORES, ROW_SCORES, SCORES

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
        """Whether fewer tokens went through some layer than through the first."""
        tokens = [len(layer.tokens.positions) for layer in self.steps[0].layers]
        return min(tokens) < tokens[0]


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
    asking = {it.before_layer: it.queries for it in points if not it.returns}
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


def route_inputs(entering: Tokens, scores: torch.Tensor, survivors: Survivors) -> dict[str, Array]:
    """What a routed layer is told besides.

    Args:
        entering: The tokens that go through it.
        scores: The router's, [tokens], of all that reach it.
        survivors: Which of them go through.
    """
    weights = torch.where(entering.visual, scores[survivors.indices], 1)
    return {ROUTE_WEIGHTS: weights.numpy()}


def score_arrays(layer: LayerStep, names: Collection[str]) -> dict[str, Array]:
    """Scores that were computed behind a layer.

    Args:
        layer: With those that the reference has there.
        names: A graph's outputs that are wanted, if they are among them.
    """
    found: dict[str, Array] = {}
    if layer.scores is not None:
        scores = layer.scores.own, layer.scores.cross, layer.scores.rows
        every = zip((*SCORES, ROW_SCORES), scores, strict=True)
        found |= {name: it.numpy() for name, it in every}
    if layer.router is not None:
        found[ROUTER_SCORES] = layer.router.numpy()
    return {name: found[name] for name in names if name in found}
