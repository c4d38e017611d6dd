"""Both models whole, in memory: stage by stage and end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from atp_export.parity.end_to_end import SCOPE, check_dense, check_pruned
from atp_export.parity.measures import Tolerance
from atp_export.parity.pruned_reference import PrunedReference, run_reference
from atp_export.parity.recording import BundleRun, drop_some, keep_all
from atp_export.parity.report import Check, Note
from atp_export.parity.samples import Prompt, picture
from atp_export.parity.stages import check_head, check_segment, check_vision
from atp_export.parity.vision_pruning import Shown, check_shown, show
from atp_models.reference import LlavaReference
from atp_runtime.bundle import Bundle
from atp_runtime.selection import Selectors


def check_fully(
    bundle: Bundle,
    reference: LlavaReference,
    prompts: Sequence[Prompt],
    tolerances: Mapping[str, Tolerance],
    report: Note,
) -> tuple[Check, ...]:
    """All checks of the full mode.

    Args:
        bundle: Its manifest is trusted, its files are not hashed.
        reference: The checkpoint, loaded.
        prompts: The first is also run stage by stage.
        tolerances: Of the bundle's precision.
        report: Told what is being compared.
    """
    report(f"parity: {', '.join(prompt.name for prompt in prompts)} end to end")
    ends, shown, run = _end_to_end(bundle, reference, prompts, tolerances)
    report("parity: stage by stage")
    stages = _stages(bundle, reference, shown, run, tolerances)
    return (*stages, *ends)


def _end_to_end(
    bundle: Bundle,
    reference: LlavaReference,
    prompts: Sequence[Prompt],
    tolerances: Mapping[str, Tolerance],
) -> tuple[list[Check], Shown, PrunedReference | None]:
    manifest = bundle.manifest
    prunes = any(stage.pruning for stage in manifest.segments)
    expected = None
    with BundleRun(bundle, max(prompt.tokens for prompt in prompts)) as run:
        shown = [show(run, reference, prompt) for prompt in prompts]
        checks = [_check_whole(run, reference, it, tolerances) for it in shown]
        if manifest.vision.pruning is not None and prompts[0].pixel_values is not None:
            checks.insert(0, check_shown(shown[0], manifest, tolerances[SCOPE]))
        if prunes and prompts[0].pixel_values is not None:
            rules = Selectors.open(bundle.root, manifest)
            for name, select in (("pruned", rules), ("forced", drop_some)):
                check, expected = check_pruned(name, run, reference, shown[0], select, tolerances)
                checks.append(check)
                # Of a rule that keeps everything on this prompt, dropping is checked by force.
                if expected is None or expected.drops:
                    break
    return checks, shown[0], expected


def _check_whole(
    run: BundleRun,
    reference: LlavaReference,
    shown: Shown,
    tolerances: Mapping[str, Tolerance],
) -> Check:
    """The bundle with every token kept; of Transformers' LLaVA, if that computes the same."""
    routed = any(stage.routed for stage in run.manifest.segments)
    if run.manifest.structure is None and not routed:
        return check_dense(run, reference, shown, tolerances)
    check, _ = check_pruned("whole", run, reference, shown, keep_all, tolerances)
    return check


def _stages(
    bundle: Bundle,
    reference: LlavaReference,
    shown: Shown,
    run: PrunedReference | None,
    tolerances: Mapping[str, Tolerance],
) -> list[Check]:
    manifest = bundle.manifest
    pixels = shown.prompt.pixel_values
    if pixels is None:
        pixels = picture(manifest.vision.image_size, 0)[None]
    if run is None:
        run = run_reference(reference, shown, manifest, {})
    states = [step.layers[-1].left for step in run.steps]
    logits = torch.cat([step.logits for step in run.steps])
    _, seeing = check_vision(bundle, pixels, reference.see, tolerances)
    return [
        *seeing,
        *(check_segment(bundle, stage, run, tolerances) for stage in manifest.segments),
        check_head(bundle, states, logits, tolerances),
    ]
