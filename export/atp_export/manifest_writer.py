"""Puts the finished steps of a bundle together into its manifest."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from atp_calibration.quantisation.qdq import OPSETS
from atp_export.graphs.dialects import DIALECTS
from atp_export.integers.stored import block_size, count_kept, describe
from atp_export.job import ExportJob
from atp_export.layout import EMBEDDING_FILE, PROCESSOR_DIRECTORY, PRUNING_FILE
from atp_export.plan import DTYPE_NAMES
from atp_export.versions import package_versions
from atp_export.vision_plan import VisionPlan
from atp_export.workspace import Workspace, write_atomically
from atp_models.architecture import TextSpec, VisionSpec
from atp_runtime.manifest import (
    FORMAT,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Embedding,
    FileRecord,
    Manifest,
    Provenance,
    Quantisation,
    Stage,
    TextModel,
    VisionModel,
    dump_manifest,
)


def write_manifest(job: ExportJob, workspace: Workspace) -> Manifest:
    """Writes `manifest.json` from the finished steps."""
    spec = job.plan.spec
    files: dict[str, FileRecord] = {}
    for step in workspace.steps.values():
        files.update(step.files)
    stages = [step.stage for step in workspace.steps.values() if step.stage is not None]
    segments, heads = job.plan.segments, job.plan.heads
    quantisation = _quantisation(job, workspace, stages)
    opsets = {name: _opset(name, quantisation) for name in job.plan.dialects}
    later = (*(segment.name for segment in segments), *(head.name for head in heads))
    order = ["vision", "projector", *later]
    manifest = Manifest(
        format=FORMAT,
        schema_version=SCHEMA_VERSION,
        precision=job.plan.precision,
        dialect=job.plan.dialect,
        opset=opsets[job.plan.dialect],
        text=text_model(spec.text, job.plan.axes["tokens"].maximum),
        vision=_vision_model(spec.vision, spec.image_token_id, job.plan.vision),
        embedding=Embedding(EMBEDDING_FILE, DTYPE_NAMES[job.plan.dtype]),
        axes=job.plan.axes,
        stages=tuple(sorted(stages, key=lambda stage: order.index(stage.name))),
        processor=PROCESSOR_DIRECTORY,
        pruning_weights=PRUNING_FILE if PRUNING_FILE in files else None,
        provenance=Provenance(
            model=job.checkpoint.path.resolve().name,
            checkpoint_fingerprint=job.fingerprint,
            command=job.command,
            packages=package_versions(),
            notice=job.notice,
        ),
        files=files,
        structure=job.plan.structure,
        other_dialects={name: opsets[name] for name in job.plan.dialects[1:]},
        quantisation=quantisation,
    )
    write_atomically(workspace.root / MANIFEST_NAME, dump_manifest(manifest))
    return manifest


def _quantisation(
    job: ExportJob, workspace: Workspace, stages: Sequence[Stage]
) -> Quantisation | None:
    layers = job.checkpoint.quantised
    if not layers:
        return None
    count = sum(count_kept(ir.load(workspace.root / stage.graph)) for stage in stages)
    return describe(layers, block_size(job.checkpoint), count)


def _opset(dialect: str, quantisation: Quantisation | None) -> int:
    opset = DIALECTS[dialect].opset
    return opset if quantisation is None else max(opset, OPSETS[quantisation.weights])


def text_model(spec: TextSpec, longest: int) -> TextModel:
    """The decoder's dimensions, of a bundle for up to `longest` tokens."""
    return TextModel(
        layers=spec.layers,
        hidden=spec.hidden,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        intermediate=spec.intermediate,
        vocabulary=spec.vocabulary,
        # Pruned tokens count too: positions go on where the unpruned sequence ends.
        max_positions=longest,
    )


def _vision_model(spec: VisionSpec, image_token_id: int, plan: VisionPlan | None) -> VisionModel:
    return VisionModel(
        image_size=spec.image_size,
        grid=spec.grid,
        tokens=spec.tokens,
        prefix_tokens=spec.prefix_tokens,
        skipped_patches=spec.skipped_patches,
        image_token_id=image_token_id,
        pruning=plan.pruning if plan else None,
    )
