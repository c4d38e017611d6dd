"""Whole prompts through the device runtime, teacher-forced, against the PyTorch reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from atp_export.parity.measures import Array, Measure, Tolerance, compare, in_sequence
from atp_export.parity.pruned_reference import PrunedReference, run_reference, score_arrays
from atp_export.parity.recording import BundleRun, Outputs, keep_all
from atp_export.parity.report import Check
from atp_export.parity.vision_pruning import AGAINST, Shown
from atp_models.reference import DenseStep, LlavaReference, PrunedStep
from atp_models.reference_layers import Survivors
from atp_runtime.decoder_results import PointResult
from atp_runtime.errors import CheckFailedError
from atp_runtime.manifest import Stage
from atp_runtime.selection import BoolArray, SelectTokens
from atp_runtime.tensor_names import PRESENT, cache_names

SCOPE = "end to end"


def check_dense(
    run: BundleRun,
    reference: LlavaReference,
    shown: Shown,
    tolerances: Mapping[str, Tolerance],
) -> Check:
    """The bundle with every token kept in the decoder against Transformers' own LLaVA.

    Of images whose tokens are fewer than the tower's features, the decoder alone is Transformers'.
    """
    result, outputs = run.prefill(shown.seen, keep_all)
    dense, prompt = reference.dense(), shown.prompt
    asked = torch.from_numpy(prompt.ids)
    whole = run.manifest.vision.pruning is None or shown.features is None
    if whole:
        pixels = None if prompt.pixel_values is None else torch.from_numpy(prompt.pixel_values)
        step = dense.forward(asked, pixels)
    else:
        step = dense.embedded(reference.embed(asked, shown.features))
    pairs = [(_found(result.logits, outputs), _dense(step))]
    for _, ids in prompt.following:
        found = _found(*run.follow(ids))
        pairs.append((found, _dense(dense.forward(torch.from_numpy(ids)))))
    measures = _measures(prompt.moments, pairs, tolerances)
    against = "Transformers' LLaVA" if whole else AGAINST
    return Check.of("dense", SCOPE, against, prompt.name, measures)


def check_pruned(
    name: str,
    run: BundleRun,
    reference: LlavaReference,
    shown: Shown,
    select: SelectTokens,
    tolerances: Mapping[str, Tolerance],
) -> tuple[Check, PrunedReference | None]:
    """The bundle pruning against PyTorch with the same tokens kept.

    Args:
        name: Of the check.
        run: The bundle.
        reference: The checkpoint.
        shown: With images.
        select: What prunes: the bundle's own rule, or another.
        tolerances: Of the bundle's precision.

    Returns:
        The check, and the reference's run for checking stage by stage; None if the bundle's
        rule could not decide.
    """
    against = AGAINST
    if run.manifest.structure is not None:
        against = "PyTorch's simulation, same tokens kept"
    try:
        result, outputs = run.prefill(shown.seen, select)
    except CheckFailedError as error:
        return Check.impossible(name, SCOPE, against, error.what), None
    manifest, prompt = run.manifest, shown.prompt
    is_visual = prompt.ids == manifest.vision.image_token_id
    survivors = kept_before(result.points, is_visual)
    expected = run_reference(reference, shown, manifest, survivors)
    scored = {stage.layers[1]: stage for stage in manifest.segments if stage.pruning}
    pairs = [(_found(result.logits, outputs, scored), _pruned(expected.steps[0], scored))]
    for (_, ids), step in zip(prompt.following, expected.steps[1:], strict=True):
        pairs.append((_found(*run.follow(ids)), _pruned(step, {})))
    counts = [len(prompt.ids), *(len(point.kept) for point in result.points)]
    detail = f"{prompt.name}, tokens {' → '.join(map(str, counts))}"
    measures = _measures(prompt.moments, pairs, tolerances)
    return Check.of(name, SCOPE, against, detail, measures), expected


def kept_before(points: tuple[PointResult, ...], is_visual: BoolArray) -> dict[int, Survivors]:
    """By layer, what goes on of the tokens that were there, from the decoder's record.

    Args:
        points: What happened at each.
        is_visual: bool [tokens], of the prompt.
    """
    return {point.before_layer: _survivors(point, is_visual) for point in points}


def _survivors(point: PointResult, is_visual: BoolArray) -> Survivors:
    tokens, visual = len(point.entered), np.flatnonzero(is_visual[point.entered])
    kept = np.searchsorted(point.entered, point.kept)
    merges = point.selection.merges
    if merges is None:
        return Survivors.unmerged(torch.from_numpy(kept), tokens)
    rows = np.searchsorted(kept, visual[merges.place])
    weights = merges.weights(visual, tokens)
    return Survivors(*map(torch.from_numpy, (kept, rows, weights)))


def _found(
    logits: Array, outputs: Outputs, scored: Mapping[int, Stage] | None = None
) -> dict[str, Array]:
    present = {name: value for name, value in outputs.items() if name.startswith(PRESENT)}
    scores = {
        _score_name(layer, name): outputs[f"{stage.name}:{name}"]
        for layer, stage in (scored or {}).items()
        for name in stage.scores
    }
    return {"logits": logits[np.newaxis], **present, **scores}


def _dense(step: DenseStep) -> dict[str, Array]:
    found = {"logits": step.logits.numpy()}
    for layer, pair in enumerate(zip(step.keys, step.values, strict=True)):
        found |= _present(layer, *pair)
    return found


def _pruned(step: PrunedStep, scored: Mapping[int, Stage]) -> dict[str, Array]:
    found = {"logits": step.logits.numpy()}
    for number, layer in enumerate(step.layers):
        found |= _present(number, layer.key, layer.value)
        if number + 1 in scored:
            for name, value in score_arrays(layer, scored[number + 1].scores).items():
                found[_score_name(number + 1, name)] = value
    return found


def _present(layer: int, key: torch.Tensor, value: torch.Tensor) -> dict[str, Array]:
    return dict(zip(cache_names(layer)[2:], (key.numpy(), value.numpy()), strict=True))


def _score_name(before_layer: int, name: str) -> str:
    return f"{name} before layer {before_layer}"


def _measures(
    moments: Sequence[str],
    pairs: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]],
    tolerances: Mapping[str, Tolerance],
) -> Iterator[Measure]:
    for moment in dict.fromkeys(moments):
        at = [pair for m, pair in zip(moments, pairs, strict=True) if m == moment]
        for name in at[0][1]:
            found, expected = (in_sequence([pair[side][name] for pair in at]) for side in (0, 1))
            bound = tolerances["logits" if name == "logits" else SCOPE]
            yield compare(name, moment, found, expected, bound)
