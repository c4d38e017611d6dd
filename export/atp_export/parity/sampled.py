"""A few layers of each stage, one after the other, for machines that cannot hold both models.

A sampled layer is cut out of the bundle's own graph and reads its weights from the bundle's
own file. Its inputs are the outputs of the layer sampled before it, beginning with embeddings
and image features, so that they look like a residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from atp_export.parity.measures import Measure, Tolerance, compare
from atp_export.parity.probes import hidden_name, single_layer, tower_layers
from atp_export.parity.pruned_reference import entry_inputs, route_inputs
from atp_export.parity.report import Check, Note
from atp_export.parity.samples import picture, random_text
from atp_export.parity.sessions import GraphSession
from atp_export.parity.stages import (
    MODULES,
    SCOPE,
    check_head,
    check_vision,
    empty_past,
    layer_inputs,
    layer_names,
    layer_outputs,
    leaving,
    row_inputs,
    tower_measures,
    update_measure,
)
from atp_export.parity.tower_merging import merge_layers, said
from atp_models.architecture import ModelSpec
from atp_models.reference_layers import LayerStep, Survivors, Tokens
from atp_models.reference_parts import ReferenceParts
from atp_models.reference_queries import asked_tokens
from atp_models.reference_routing import run_routed
from atp_models.reference_structure import layer_runner
from atp_runtime.bundle import Bundle
from atp_runtime.chunk import Chunk
from atp_runtime.embedding import EmbeddingTable
from atp_runtime.image_tokens import Places
from atp_runtime.manifest import Manifest, Stage, VisionModel
from atp_runtime.tensor_names import TEXT_MEAN, cache_names

# Enough to fill a matrix multiplication, few enough for a 7B layer to take a second.
_TEXT, _VISUAL, _TURN = 8, 24, 5
_DROP_EVERY = 4
_EYES = ("model.vision_tower.", "model.multi_modal_projector.")
_RESERVE = 1 << 30  # bytes for PyTorch, ONNX Runtime and activations


@dataclass(frozen=True, eq=False)
class _Chunk:
    """The tokens that go through the sampled layers together.

    Attributes:
        when: Which moment of a conversation this is.
        hidden: [1, kept, hidden].
        tokens: What they are.
        router: If the next layer is routed, its router's scores [kept] of them.
    """

    when: str
    hidden: torch.Tensor
    tokens: Tokens
    router: torch.Tensor | None = None


def check_samples(
    bundle: Bundle,
    parts: ReferenceParts,
    spec: ModelSpec,
    available_bytes: int,
    tolerances: Mapping[str, Tolerance],
    report: Note,
) -> tuple[Check, ...]:
    """All checks of the sampled mode.

    Args:
        bundle: Its manifest is trusted, its files are not hashed.
        parts: Gives the reference's layers one by one.
        spec: The model.
        available_bytes: What is left of the machine's memory; decides how much of the vision
            tower is compared.
        tolerances: Of the bundle's precision.
        report: Told what is being compared.
    """
    report("parity: vision")
    seeing, features = _check_vision(bundle, parts, spec, available_bytes, tolerances)
    embedding, chunks = _begin(bundle, parts, spec, features, tolerances)
    checks = [embedding, *seeing]
    for stage in bundle.manifest.segments:
        layers = sampled_layers(stage)
        report(f"parity: {stage.name}, layers {', '.join(map(str, layers))}")
        check, chunks = _check_segment(bundle, stage, layers, parts, chunks, tolerances)
        checks.append(check)
    report("parity: head")
    states = [chunk.hidden for chunk in chunks]
    expected = parts.head(torch.cat([state[:, -1:] for state in states], dim=1))
    checks.append(check_head(bundle, states, expected, tolerances))
    return tuple(checks)


def sampled_layers(stage: Stage) -> tuple[int, ...]:
    """First, middle and last layer of a segment."""
    first, last = stage.layers[0], stage.layers[1] - 1
    return tuple(sorted({first, (first + last) // 2, last}))


def affordable_tower_layers(spec: ModelSpec, available_bytes: int) -> int:
    """How many layers of the vision tower fit into memory, in float32 and as mapped weights."""
    shapes = spec.tensor_shapes().items()
    needed = 6 * sum(torch.Size(shape).numel() for name, shape in shapes if name.startswith(_EYES))
    share = min(1.0, max(0, available_bytes - _RESERVE) / needed)
    return max(1, int(spec.vision.layers * share))


def _check_vision(
    bundle: Bundle,
    parts: ReferenceParts,
    spec: ModelSpec,
    available_bytes: int,
    tolerances: Mapping[str, Tolerance],
) -> tuple[tuple[Check, ...], torch.Tensor | None]:
    """The vision stages, whole if they fit; and the features if so."""
    pixels = picture(spec.vision.image_size, 0)[np.newaxis]
    layers = affordable_tower_layers(spec, available_bytes)
    if layers == spec.vision.layers:
        seen, checks = check_vision(bundle, pixels, parts.see, tolerances)
        return checks, seen.features
    # What leaves a merge depends on what it chose; before the first there is enough to see.
    layers = min([layers, *merge_layers(bundle.manifest)[:1]])
    stage = bundle.manifest.stage("vision")
    path = bundle.path(stage.graph)
    states = parts.tower_states(torch.from_numpy(pixels), max(1, layers))[: layers + 1]
    session = GraphSession(tower_layers(path, stage, layers), path.parent)
    inputs = {"pixel_values": pixels, TEXT_MEAN: said(spec.text.hidden)[np.newaxis]}
    measures = tower_measures(session.run(inputs), states, tolerances)
    detail = f"first {layers} of {spec.vision.layers} layers, no memory for the rest"
    return (Check.of("vision", SCOPE, MODULES, detail, measures),), None


def _begin(
    bundle: Bundle,
    parts: ReferenceParts,
    spec: ModelSpec,
    features: torch.Tensor | None,
    tolerances: Mapping[str, Tolerance],
) -> tuple[Check, list[_Chunk]]:
    """The embedding table's check, and what enters the first layer."""
    ids = random_text(spec, 2 * _TEXT + _VISUAL + _TURN + 1, np.random.default_rng(0))
    table = parts.embed(torch.from_numpy(ids))
    found = EmbeddingTable.open(bundle).rows(ids)[np.newaxis]
    measure = compare("embed_tokens", "rows", found, table.numpy(), tolerances[SCOPE])
    check = Check.of("embedding", SCOPE, "the checkpoint", f"{len(ids)} rows", [measure])
    seen = table[:, -_VISUAL:] if features is None else features[:1, :_VISUAL]
    prompted = torch.cat((table[:, :_TEXT], seen, table[:, _TEXT : 2 * _TEXT]), dim=1)
    visual = torch.zeros(prompted.shape[1], dtype=torch.bool)
    visual[_TEXT : _TEXT + seen.shape[1]] = True
    tokens = replace(_tokens(0, visual), places=_places(bundle.manifest.vision, visual))
    chunks, position = [_Chunk("prefill", prompted, tokens)], prompted.shape[1]
    for when, count in (("turn", _TURN), ("decode", 1)):
        hidden = table[:, position : position + count]
        text = torch.zeros(count, dtype=torch.bool)
        chunks.append(_Chunk(when, hidden, _tokens(position, text)))
        position += count
    return check, chunks


def _places(vision: VisionModel, visual: torch.Tensor) -> torch.Tensor:
    """Where the first features of an image lie, see `Tokens`; they may be of several."""
    count = int(visual.sum())
    images = -(-count // vision.tokens)
    ids = np.full(images * vision.tokens, vision.image_token_id)
    chunk = Chunk.from_ids(ids, vision.image_token_id, [Places.whole(vision)] * images)
    places = np.full((len(visual), 3), -1)
    places[visual.numpy()] = np.stack((chunk.image, chunk.row, chunk.column), axis=1)[:count]
    return torch.from_numpy(places)


def _tokens(position: int, visual: torch.Tensor) -> Tokens:
    return Tokens(torch.arange(position, position + len(visual)), visual)


def _check_segment(
    bundle: Bundle,
    stage: Stage,
    layers: Sequence[int],
    parts: ReferenceParts,
    chunks: Sequence[_Chunk],
    tolerances: Mapping[str, Tolerance],
) -> tuple[Check, list[_Chunk]]:
    """Some layers of a segment; and what leaves the last of them."""
    measures: list[Measure] = []
    flow = list(chunks)
    for layer in layers:
        keep = [_survivors(stage, layer, chunk) for chunk in flow]
        steps = _run_reference(bundle.manifest, stage, layer, parts, flow, keep)
        measures += _layer_measures(bundle, stage, layer, flow, keep, steps, tolerances)
        flow = [
            # What skips a routed layer comes back behind it.
            _Chunk(it.when, step.left, it.tokens if stage.routed else step.tokens, step.router)
            for it, step in zip(flow, steps, strict=True)
        ]
    return Check.of(stage.name, SCOPE, MODULES, layer_names(stage, layers), measures), flow


def _survivors(stage: Stage, layer: int, chunk: _Chunk) -> Survivors:
    """Where a segment begins, drops or merges some visual tokens, as a pruning point would."""
    stays = torch.ones_like(chunk.tokens.visual)
    dropped = chunk.tokens.visual.nonzero().flatten()[::_DROP_EVERY]
    begins = layer == stage.layers[0] > 0
    if begins:
        stays[dropped] = False
    if not begins or not stage.merges or not len(dropped):
        return Survivors.unmerged(stays.nonzero().flatten(), len(stays))
    stays[dropped[0]] = True
    kept, shares = stays.nonzero().flatten(), torch.zeros(1, len(stays))
    shares[0, dropped] = 1 / len(dropped)
    return Survivors(kept, torch.searchsorted(kept, dropped[:1]), shares)


def _run_reference(
    manifest: Manifest,
    stage: Stage,
    layer: int,
    parts: ReferenceParts,
    chunks: Sequence[_Chunk],
    keep: Sequence[Survivors],
) -> list[LayerStep]:
    """The layer in PyTorch; it is freed before the bundle's is loaded."""
    runner, module = layer_runner(parts.rotary(), manifest.structure), parts.layer(layer)
    point = stage.pruning if layer + 1 == stage.layers[1] else None
    queries = point.queries if point is not None and not point.returns else None
    steps = []
    for chunk, survivors in zip(chunks, keep, strict=True):
        if chunk.router is not None:
            through, scores = survivors.indices, chunk.router
            step = run_routed(runner, module, chunk.hidden, chunk.tokens, through, scores)
        else:
            hidden, tokens = survivors.of(chunk.hidden, chunk.tokens)
            among = asked_tokens(queries, hidden, tokens.visual) if queries else None
            step = runner.run(module, hidden, tokens, among)
        router = parts.router_scores(layer + 1, step.left) if point and point.returns else None
        steps.append(replace(step, router=router))
    return steps


def _layer_measures(
    bundle: Bundle,
    stage: Stage,
    layer: int,
    chunks: Sequence[_Chunk],
    keep: Sequence[Survivors],
    steps: Sequence[LayerStep],
    tolerances: Mapping[str, Tolerance],
) -> Iterator[Measure]:
    path = bundle.path(stage.graph)
    session = GraphSession(single_layer(path, stage, layer), path.parent)
    for number, (chunk, survivors, step) in enumerate(zip(chunks, keep, steps, strict=True)):
        inputs = empty_past(stage, step.key)
        inputs |= layer_inputs(layer, step, steps[:number])
        if chunk.router is not None:
            inputs |= route_inputs(step.tokens, chunk.router, survivors)
        if stage.tells_visual:
            inputs |= row_inputs(step.tokens, bundle.manifest)
        # The segment takes the length of the past from the keys of its first layer.
        inputs[cache_names(stage.layers[0])[0]] = inputs[cache_names(layer)[0]]
        inputs |= {"hidden_states": chunk.hidden.numpy(), **entry_inputs(survivors)}
        inputs[hidden_name(layer)] = chunk.hidden.numpy()
        outputs = session.run(inputs)
        expected = layer_outputs(stage, layer, step)
        for name, value in expected.items():
            yield compare(name, chunk.when, outputs[name], value, tolerances[SCOPE])
        if chunk.when == "prefill":
            entered, left = step.entered.numpy(), step.left.numpy()
            after = outputs[leaving(stage, layer)]
            yield update_measure(layer, entered, after, entered, left, tolerances)
