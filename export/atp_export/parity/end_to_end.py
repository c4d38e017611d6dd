"""Whole prompts through the device runtime, teacher-forced, against the PyTorch reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from atp_export.parity.measures import Array, Measure, Tolerance, compare, in_sequence
from atp_export.parity.probes import SCORES
from atp_export.parity.recording import BundleRun, Outputs, keep_all
from atp_export.parity.report import Check
from atp_export.parity.samples import Prompt
from atp_models.reference import DenseStep, LlavaReference, PrunedStep, Scores
from atp_runtime.decoder_results import PointResult
from atp_runtime.errors import CheckFailedError
from atp_runtime.manifest import Manifest, cache_names
from atp_runtime.selection import SelectTokens

SCOPE = "end to end"
Keep = Mapping[int, torch.Tensor]


@dataclass(frozen=True, eq=False)
class PrunedReference:
    """A prompt through the pruned reference.

    Attributes:
        keep: By layer, the indices that were kept before it.
        steps: The prompt's, then one per forced token.
    """

    keep: Keep
    steps: tuple[PrunedStep, ...]


def check_dense(
    run: BundleRun,
    reference: LlavaReference,
    prompt: Prompt,
    tolerances: Mapping[str, Tolerance],
) -> Check:
    """The bundle with every token kept against Transformers' own LLaVA."""
    result, outputs = run.prefill(prompt, keep_all)
    dense = reference.dense()
    pixels = None if prompt.pixel_values is None else torch.from_numpy(prompt.pixel_values)
    step = dense.forward(torch.from_numpy(prompt.ids), pixels)
    pairs = [(_found(result.logits, outputs), _dense(step))]
    for token in prompt.forced:
        logits, outputs = run.decode(int(token))
        pairs.append((_found(logits, outputs), _dense(dense.forward(torch.tensor([token])))))
    measures = _measures(pairs, tolerances)
    return Check.of("dense", SCOPE, "Transformers' LLaVA", prompt.name, measures)


def check_pruned(
    run: BundleRun,
    reference: LlavaReference,
    prompt: Prompt,
    select: SelectTokens,
    manifest: Manifest,
    tolerances: Mapping[str, Tolerance],
) -> tuple[Check, PrunedReference | None]:
    """The bundle pruning by its own rule against PyTorch with the same tokens kept.

    Returns:
        The check, and the reference's run for checking stage by stage; None if the bundle's
        rule could not decide.
    """
    against = "PyTorch, same tokens kept"
    try:
        result, outputs = run.prefill(prompt, select)
    except CheckFailedError as error:
        return Check.impossible("pruned", SCOPE, against, error.what), None
    expected = run_reference(reference, prompt, manifest, kept_before(result.points))
    scored = {stage.layers[1]: stage.name for stage in manifest.segments if stage.pruning}
    pairs = [(_found(result.logits, outputs, scored), _pruned(expected.steps[0], scored))]
    for token, step in zip(prompt.forced, expected.steps[1:], strict=True):
        logits, outputs = run.decode(int(token))
        pairs.append((_found(logits, outputs), _pruned(step, {})))
    counts = [len(prompt.ids), *(len(point.kept) for point in result.points)]
    detail = f"{prompt.name}, tokens {' → '.join(map(str, counts))}"
    return Check.of("pruned", SCOPE, against, detail, _measures(pairs, tolerances)), expected


def kept_before(points: tuple[PointResult, ...]) -> dict[int, torch.Tensor]:
    """By layer, which of the tokens that were there go on, from the decoder's record."""
    return {
        point.before_layer: torch.from_numpy(np.searchsorted(point.entered, point.kept))
        for point in points
    }


def run_reference(
    reference: LlavaReference, prompt: Prompt, manifest: Manifest, keep: Keep
) -> PrunedReference:
    """A prompt and its forced tokens through the pruned reference."""
    points = [stage.layers[1] for stage in manifest.segments if stage.pruning]
    run = reference.pruned(points)
    ids = torch.from_numpy(prompt.ids)
    features = None
    if prompt.pixel_values is not None:
        features = reference.see(torch.from_numpy(prompt.pixel_values)).features
    visual = ids == manifest.vision.image_token_id
    steps = [run.forward(reference.embed(ids, features), visual, keep)]
    for token in prompt.forced:
        hidden = reference.embed(torch.tensor([int(token)]))
        steps.append(run.forward(hidden, torch.tensor([False])))
    return PrunedReference(keep, tuple(steps))


def score_arrays(scores: Scores) -> dict[str, Array]:
    """Scores by the names of a graph's outputs."""
    return dict(zip(SCORES, (scores.own.numpy(), scores.cross.numpy()), strict=True))


def _found(
    logits: Array, outputs: Outputs, scored: Mapping[int, str] | None = None
) -> dict[str, Array]:
    present = {name: value for name, value in outputs.items() if name.startswith("present.")}
    scores = {
        _score_name(layer, name): outputs[f"{stage}:{name}"]
        for layer, stage in (scored or {}).items()
        for name in SCORES
    }
    return {"logits": logits[np.newaxis], **present, **scores}


def _dense(step: DenseStep) -> dict[str, Array]:
    found = {"logits": step.logits.numpy()}
    for layer, pair in enumerate(zip(step.keys, step.values, strict=True)):
        found |= _present(layer, *pair)
    return found


def _pruned(step: PrunedStep, scored: Mapping[int, str]) -> dict[str, Array]:
    found = {"logits": step.logits.numpy()}
    for number, layer in enumerate(step.layers):
        found |= _present(number, layer.key, layer.value)
        if number + 1 in scored and layer.scores is not None:
            for name, value in score_arrays(layer.scores).items():
                found[_score_name(number + 1, name)] = value
    return found


def _present(layer: int, key: torch.Tensor, value: torch.Tensor) -> dict[str, Array]:
    return dict(zip(cache_names(layer)[2:], (key.numpy(), value.numpy()), strict=True))


def _score_name(before_layer: int, name: str) -> str:
    return f"{name} before layer {before_layer}"


def _measures(
    pairs: list[tuple[dict[str, Array], dict[str, Array]]], tolerances: Mapping[str, Tolerance]
) -> Iterator[Measure]:
    (found, expected), decoded = pairs[0], pairs[1:]
    for name in expected:
        yield compare(name, "prefill", found[name], expected[name], _bound(name, tolerances))
    for name in decoded[0][1] if decoded else ():
        a, b = (in_sequence([side[which][name] for side in decoded]) for which in (0, 1))
        yield compare(name, "decode", a, b, _bound(name, tolerances))


def _bound(name: str, tolerances: Mapping[str, Tolerance]) -> Tolerance:
    return tolerances["logits" if name == "logits" else SCOPE]
