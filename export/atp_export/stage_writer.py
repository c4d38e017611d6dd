"""Writes the steps of a bundle into its workspace, one file after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from atp_export.compose import StageComposer
from atp_export.integers.graph import insert_integers
from atp_export.integers.stored import StageIntegers
from atp_export.job import ExportJob
from atp_export.layout import (
    EMBEDDING_FILE,
    GRAPH_DIRECTORY,
    PROCESSOR_DIRECTORY,
    PRUNING_FILE,
    data_file,
    graph_file,
)
from atp_export.plan import DTYPE_NAMES, SegmentPlan
from atp_export.processor_files import copy_processor_files
from atp_export.progress import Reporter
from atp_export.stage_graph import StageGraph, StageWeight
from atp_export.weights import (
    Placement,
    TensorSource,
    attach,
    npy_header,
    place,
    write_weights,
)
from atp_export.workspace import FinishedStep, Workspace, record_file
from atp_models.text_spec import EMBEDDING
from atp_runtime.manifest import FileRecord, Stage
from atp_runtime.pruning_point import PruningPoint


@dataclass
class StageWriter:
    """Writes the steps of one bundle into its workspace, skipping those already there."""

    job: ExportJob
    workspace: Workspace
    reporter: Reporter
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plan = self.job.plan
        self.composers = {
            name: StageComposer(plan.spec, dialect=name, dtype=plan.dtype, structure=plan.structure)
            for name in plan.dialects
        }
        self.source = TensorSource(self.job.checkpoint, plan.spec)
        (self.workspace.root / GRAPH_DIRECTORY).mkdir(exist_ok=True)

    def write_all(self) -> None:
        """Writes the small files, which may be refused, then embedding, vision, segments, head."""
        self._step("processor", self._write_processor)
        self._step("embedding", self._write_embedding)
        vision = self.job.plan.vision
        compose = partial(StageComposer.vision, plan=vision)
        self._step("vision", partial(self._write_stage, "vision", "vision", compose))
        if vision is not None and vision.cut:
            write = partial(self._write_stage, "projector", "projector", StageComposer.projector)
            self._step("projector", write)
        for segment in self.job.plan.segments:
            self._step(segment.name, partial(self._write_segment, segment))
        for head in self.job.plan.heads:
            compose = partial(StageComposer.head, plan=head)
            self._step(head.name, partial(self._write_stage, head.name, "head", compose))

    def _write_segment(self, segment: SegmentPlan) -> FinishedStep:
        name, layers, pruning = segment.name, (segment.first, segment.last), segment.pruning
        merging, routed = self.job.plan.merges_before(segment), self.job.plan.routed(segment)

        def compose(composer: StageComposer) -> StageGraph:
            return composer.segment(
                name,
                *layers,
                scores=segment.scores,
                merging=merging,
                routed=routed,
            )

        return self._write_stage(name, "segment", compose, layers=layers, pruning=pruning)

    def _step(self, name: str, write: Callable[[], FinishedStep]) -> None:
        if name in self.workspace.steps:
            self.reporter.note(f"{name}: already there, kept")
            return
        start = time.perf_counter()
        self.workspace.finish(name, write())
        self.seconds[name] = time.perf_counter() - start

    def _write_embedding(self) -> FinishedStep:
        text, dtype = self.job.plan.spec.text, self.job.plan.dtype
        shape = (text.vocabulary, text.hidden)
        weight = StageWeight(EMBEDDING, EMBEDDING, shape, dtype, transposed=False)
        header = npy_header(shape, np.dtype(DTYPE_NAMES[dtype]))
        path = self.workspace.root / EMBEDDING_FILE
        placements = [Placement(weight, len(header))]
        with self.reporter.task("embedding", weight.nbytes) as advance:
            record = write_weights(path, placements, self.source.read, advance, header=header)
        return FinishedStep(None, {EMBEDDING_FILE: record})

    def _write_stage(
        self,
        name: str,
        kind: str,
        compose: Callable[[StageComposer], StageGraph],
        *,
        layers: tuple[int, int] = (0, 0),
        pruning: PruningPoint | None = None,
    ) -> FinishedStep:
        with self.reporter.waiting(f"{name}: tracing"):
            graphs = {dialect: compose(made) for dialect, made in self.composers.items()}
        graph = graphs[self.job.plan.dialect]
        integers = StageIntegers(self.source, graph)
        if integers.layers:
            self.reporter.note(f"{name}: {len(integers.layers)} layers keep their integers")
        own = [weight for weight in graph.weights if weight.source != EMBEDDING]
        placements, total = place(integers.in_place(own))
        path = self.workspace.root / data_file(name)
        with self.reporter.task(name, total) as advance:
            files = {data_file(name): write_weights(path, placements, integers.read, advance)}
        if len(own) < len(graph.weights):
            files[EMBEDDING_FILE] = self.workspace.steps["embedding"].files[EMBEDDING_FILE]
        stage = Stage(
            name=name,
            kind=kind,
            graph=graph_file(name),
            data=tuple(files),
            inputs=graph.signature.inputs,
            outputs=graph.signature.outputs,
            layers=layers,
            pruning=pruning,
            other_graphs={
                dialect: graph_file(name, dialect) for dialect in self.job.plan.dialects[1:]
            },
        )
        for dialect, made in graphs.items():
            file = stage.other_graphs.get(dialect, stage.graph)
            files[file] = self._write_graph(file, made, placements, integers)
        return FinishedStep(stage, files)

    def _write_graph(
        self,
        file: str,
        graph: StageGraph,
        placements: Sequence[Placement],
        integers: StageIntegers,
    ) -> FileRecord:
        data = Path(data_file(graph.name)).name
        locations = {p.weight: (data, p.offset) for p in placements}
        pieces = {weight.name: place for weight, place in locations.items()}
        # Their weights are nowhere: integers take their places below.
        locations |= {layer.weight: (data, 0) for layer in integers.layers.values()}
        for tied in (weight for weight in graph.weights if weight.source == EMBEDDING):
            # A tied head reads the embedding's own file, behind its .npy header.
            table = np.load(self.workspace.root / EMBEDDING_FILE, mmap_mode="r")
            offset = int(table.offset) + tied.skipped_bytes
            locations[tied] = (Path(EMBEDDING_FILE).name, offset)
        # Dialects differ in operators, not in weights: one that only another has is a KeyError.
        model = attach(graph, [locations[weight] for weight in graph.weights])
        insert_integers(model, integers.layers, pieces)
        path = self.workspace.root / file
        path.write_bytes(ir.serde.serialize_model(model).SerializeToString())
        onnx.checker.check_model(str(path), full_check=True)
        return record_file(path)

    def _write_processor(self) -> FinishedStep:
        root = self.workspace.root
        names = copy_processor_files(self.job.checkpoint.path, root / PROCESSOR_DIRECTORY)
        paths = [f"{PROCESSOR_DIRECTORY}/{name}" for name in names]
        if self.job.modules is not None:
            (root / PRUNING_FILE).parent.mkdir(exist_ok=True)
            self.job.modules.save(root / PRUNING_FILE)
            paths.append(PRUNING_FILE)
        return FinishedStep(None, {path: record_file(root / path) for path in paths})
