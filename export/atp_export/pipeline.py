"""The export itself: stage after stage into the workspace, then manifest, checks, rename."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch

from atp_export.compose import StageComposer, StageGraph, StageWeight
from atp_export.plan import DTYPE_NAMES, ExportPlan, plan_summary
from atp_export.processor_files import copy_processor_files
from atp_export.progress import Reporter
from atp_export.weights import TensorSource, attach, place, write_weights
from atp_export.workspace import (
    FinishedStep,
    Workspace,
    check_space,
    record_file,
    work_key,
    write_atomically,
)
from atp_models.atp import AtpModules
from atp_models.checkpoint import Checkpoint
from atp_runtime.manifest import (
    FORMAT,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Embedding,
    FileRecord,
    Manifest,
    Provenance,
    PruningPoint,
    Stage,
    TextModel,
    VisionModel,
    dump_manifest,
)

EMBEDDING_FILE = "onnx/embed_tokens.npy"
EMBEDDING_SOURCE = "model.language_model.embed_tokens.weight"
PROCESSOR_DIRECTORY = "processor"
PRUNING_FILE = "pruning/atp_modules.safetensors"
PACKAGES = ("atp-llava", "torch", "transformers", "onnx", "onnx-ir", "onnxruntime")


@dataclass(frozen=True)
class ExportJob:
    """What to export where.

    Attributes:
        checkpoint: Opened and checked.
        plan: The decisions.
        bundle: The directory to make.
        command: The command line, for the provenance.
        modules: The ATP modules of the plan's pruning points, or None if it has none.
        notice: What the checkpoint's card wants said with every answer, or None.
    """

    checkpoint: Checkpoint
    plan: ExportPlan
    bundle: Path
    command: str
    modules: AtpModules | None = None
    notice: str | None = None

    def key(self) -> str:
        """Equal keys give equal bundles."""
        versions = package_versions()
        return work_key(self.checkpoint.fingerprint(), plan_summary(self.plan), versions)


@dataclass
class StageWriter:
    """Writes the steps of one bundle into its workspace, skipping those already there."""

    job: ExportJob
    workspace: Workspace
    reporter: Reporter
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plan = self.job.plan
        self.composer = StageComposer(plan.spec, dialect=plan.dialect, dtype=plan.dtype)
        self.source = TensorSource(self.job.checkpoint, plan.spec)
        (self.workspace.root / "onnx").mkdir(exist_ok=True)

    def write_all(self) -> None:
        """Writes embedding, vision, segments, head and the small files."""
        self._step("embedding", self._write_embedding)
        self._step("vision", lambda: self._write_stage("vision", self.composer.vision()))
        for segment in self.job.plan.segments:
            self._step(
                segment.name,
                lambda segment=segment: self._write_stage(  # type: ignore[misc]
                    segment.name,
                    self.composer.segment(
                        segment.name,
                        segment.first,
                        segment.last,
                        scored=segment.pruning is not None,
                    ),
                    layers=(segment.first, segment.last),
                ),
            )
        self._step("head", self._write_head)
        self._step("processor", self._write_processor)

    def _step(self, name: str, write: Callable[[], FinishedStep]) -> None:
        if name in self.workspace.steps:
            self.reporter.note(f"{name}: already there, kept")
            return
        start = time.perf_counter()
        self.workspace.finish(name, write())
        self.seconds[name] = time.perf_counter() - start

    def _embedding_weight(self) -> StageWeight:
        text = self.job.plan.spec.text
        shape = (text.vocabulary, text.hidden)
        return StageWeight(
            EMBEDDING_SOURCE, EMBEDDING_SOURCE, shape, self.job.plan.dtype, transposed=False
        )

    def _write_embedding(self) -> FinishedStep:
        weight = self._embedding_weight()
        path = self.workspace.root / EMBEDDING_FILE
        with self.reporter.task("embedding", weight.nbytes) as advance:
            dtype = np.dtype(DTYPE_NAMES[weight.dtype])
            table = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=weight.shape)
            table[:] = self.source.read(weight).numpy()
            table.flush()
            del table
            advance(weight.nbytes)
        return FinishedStep(None, {EMBEDDING_FILE: record_file(path)})

    def _write_stage(
        self, name: str, graph: StageGraph, *, layers: tuple[int, int] = (0, 0)
    ) -> FinishedStep:
        data = f"onnx/{name}.data"
        placements, total = place(graph.weights)
        with self.reporter.task(name, total) as advance:
            record = write_weights(
                self.workspace.root / data, placements, self.source.read, advance
            )
        locations = [(Path(data).name, placement.offset) for placement in placements]
        return self._finish_stage(name, graph, locations, {data: record}, layers=layers)

    def _write_head(self) -> FinishedStep:
        graph = self.composer.head()
        if not self.job.plan.spec.text.tied_embeddings:
            return self._write_stage("head", graph)
        # The tied head reads the embedding's own file, behind its .npy header.
        own = tuple(weight for weight in graph.weights if weight.source != EMBEDDING_SOURCE)
        placements, total = place(own)
        data = "onnx/head.data"
        with self.reporter.task("head", total) as advance:
            record = write_weights(
                self.workspace.root / data, placements, self.source.read, advance
            )
        table = np.load(self.workspace.root / EMBEDDING_FILE, mmap_mode="r")
        offsets = {p.weight.name: (Path(data).name, p.offset) for p in placements}
        shared = (Path(EMBEDDING_FILE).name, int(table.offset))
        locations = [offsets.get(weight.name, shared) for weight in graph.weights]
        embedding = self.workspace.steps["embedding"].files[EMBEDDING_FILE]
        files = {data: record, EMBEDDING_FILE: embedding}
        return self._finish_stage("head", graph, locations, files)

    def _finish_stage(
        self,
        name: str,
        graph: StageGraph,
        locations: list[tuple[str, int]],
        files: dict[str, FileRecord],
        *,
        layers: tuple[int, int] = (0, 0),
    ) -> FinishedStep:
        proto = ir.serde.serialize_model(attach(graph, locations))
        path = f"onnx/{name}.onnx"
        (self.workspace.root / path).write_bytes(proto.SerializeToString())
        onnx.checker.check_model(str(self.workspace.root / path))
        stage = Stage(
            name=name,
            kind="segment" if name.startswith("segment") else name,
            graph=path,
            data=tuple(files),
            inputs=graph.inputs,
            outputs=graph.outputs,
            layers=layers,
            pruning=self._pruning_after(name),
        )
        return FinishedStep(stage, {path: record_file(self.workspace.root / path), **files})

    def _pruning_after(self, name: str) -> PruningPoint | None:
        points = {segment.name: segment.pruning for segment in self.job.plan.segments}
        return points.get(name)

    def _write_processor(self) -> FinishedStep:
        root = self.workspace.root
        names = copy_processor_files(self.job.checkpoint.path, root / PROCESSOR_DIRECTORY)
        paths = [f"{PROCESSOR_DIRECTORY}/{name}" for name in names]
        if self.job.modules is not None:
            (root / PRUNING_FILE).parent.mkdir(exist_ok=True)
            self.job.modules.save(root / PRUNING_FILE)
            paths.append(PRUNING_FILE)
        return FinishedStep(None, {path: record_file(root / path) for path in paths})


def write_manifest(job: ExportJob, workspace: Workspace) -> Manifest:
    """Writes `manifest.json` from the finished steps."""
    spec = job.plan.spec
    files: dict[str, FileRecord] = {}
    for step in workspace.steps.values():
        files.update(step.files)
    stages = [step.stage for step in workspace.steps.values() if step.stage is not None]
    order = ["vision", *(segment.name for segment in job.plan.segments), "head"]
    manifest = Manifest(
        format=FORMAT,
        schema_version=SCHEMA_VERSION,
        precision=job.plan.precision,
        dialect=job.plan.dialect,
        opset=StageComposer(spec, dialect=job.plan.dialect, dtype=torch.float32).dialect.opset,
        text=TextModel(
            layers=spec.text.layers,
            hidden=spec.text.hidden,
            heads=spec.text.heads,
            kv_heads=spec.text.kv_heads,
            head_dim=spec.text.head_dim,
            intermediate=spec.text.intermediate,
            vocabulary=spec.text.vocabulary,
            max_positions=spec.text.max_positions,
        ),
        vision=VisionModel(
            image_size=spec.vision.image_size,
            grid=spec.vision.grid,
            tokens=spec.vision.tokens,
            prefix_tokens=spec.vision.prefix_tokens,
            skipped_patches=spec.vision.skipped_patches,
            image_token_id=spec.image_token_id,
        ),
        embedding=Embedding(EMBEDDING_FILE, DTYPE_NAMES[job.plan.dtype]),
        axes=job.plan.axes,
        stages=tuple(sorted(stages, key=lambda stage: order.index(stage.name))),
        processor=PROCESSOR_DIRECTORY,
        pruning_weights=PRUNING_FILE if PRUNING_FILE in files else None,
        provenance=Provenance(
            model=job.checkpoint.path.resolve().name,
            checkpoint_fingerprint=job.checkpoint.fingerprint(),
            command=job.command,
            packages=package_versions(),
            notice=job.notice,
        ),
        files=files,
    )
    write_atomically(workspace.root / MANIFEST_NAME, dump_manifest(manifest))
    return manifest


def package_versions() -> dict[str, str]:
    """Versions of the packages that shape a bundle."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def checkpoint_notice(checkpoint: Path) -> str | None:
    """What the checkpoint's `demo_card.json` wants users to know, if it has one."""
    card = checkpoint / "demo_card.json"
    if not card.is_file():
        return None
    notice = json.loads(card.read_text(encoding="utf-8")).get("notice")
    return str(notice) if notice else None


def bytes_to_write(plan: ExportPlan) -> int:
    """Bytes of a bundle's weights, from the plan alone."""
    shapes = plan.spec.tensor_shapes()
    return sum(torch.Size(shape).numel() for shape in shapes.values()) * plan.dtype.itemsize


def check_disk(job: ExportJob, workspace: Workspace) -> None:
    """Refuses an export for which the disk has no room; see `check_space`."""
    done = sum(r.bytes for step in workspace.steps.values() for r in step.files.values())
    check_space(workspace.root, max(0, bytes_to_write(job.plan) - done))
