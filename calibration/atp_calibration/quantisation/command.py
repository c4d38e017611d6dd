"""Quantises a bundle in the making; what `atp-calibrate --precision` calls."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from atp_calibration.derived_bundle import DerivedBundle
from atp_calibration.progress import Progress
from atp_calibration.quantisation.accuracy import accuracy
from atp_calibration.quantisation.agreement import Agreement, AgreementBackend
from atp_calibration.quantisation.choice import INT4, INT8, Choice
from atp_calibration.quantisation.observe import NEW_TOKENS, observe
from atp_calibration.quantisation.options import QuantisationOptions
from atp_calibration.quantisation.qdq import OPSETS, Form
from atp_calibration.quantisation.ranges import RangeBackend
from atp_calibration.quantisation.recipe import Recipe, read_recipe, worst_layers, write_recipe
from atp_calibration.quantisation.report import Accuracy, QuantisationReport, make_report
from atp_calibration.quantisation.report_markdown import write_quantisation
from atp_calibration.quantisation.search import SearchOptions
from atp_calibration.quantisation.stage_choices import StageLayers
from atp_calibration.quantisation.stage_files import own_file, write_stage
from atp_calibration.quantisation.statistics_file import Statistics
from atp_calibration.samples import Samples
from atp_runtime.errors import InputError
from atp_runtime.evaluation.json_files import read_lines, write_declared, write_whole
from atp_runtime.generation import GenerationOptions
from atp_runtime.manifest import Manifest, Quantisation, Stage
from atp_runtime.schema import to_json
from atp_runtime.session import Session

RECIPE, REPORT_JSON, REPORT_MARKDOWN = (
    "calibration/recipe.yaml",
    "calibration/report.json",
    "calibration/report.md",
)
_COMPARED = 4  # samples on which stages are held against the originals
_SHARES = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of layers in high precision, tried in turn


def quantise_bundle(
    new: DerivedBundle,
    samples: Samples,
    options: QuantisationOptions,
    *,
    threads: int | None = None,
    stream: TextIO | None = None,
) -> QuantisationReport:
    """Quantises the linear layers of a bundle, as the samples say.

    What was seen and decided is filed in `new.work`: run again, it goes on where it was
    interrupted.

    Args:
        new: The bundle in the making.
        samples: What to learn from.
        options: What becomes of the layers.
        threads: CPU threads; None lets the backend decide.
        stream: Where to say how far it is; None says nothing.

    Raises:
        InputError: The bundle is quantised already, has no such layers, the recipe does not fit,
            or the samples cannot be run.
        CheckFailedError: NaN or infinity enters a layer; the message names it.
        MachineError: Memory or disk do not suffice.
    """
    return _Work(new, samples, options, threads, Progress(stream)).run()


class _Work:
    def __init__(
        self,
        new: DerivedBundle,
        samples: Samples,
        options: QuantisationOptions,
        threads: int | None,
        progress: Progress,
    ) -> None:
        manifest = new.source.manifest
        if manifest.quantisation is not None:
            raise InputError(
                f"{new.source.root} is {manifest.quantisation.weights.upper()} already",
                why="numbers that were rounded once say little about how to round them.",
                fix="calibrate the bundle that it was made of.",
            )
        self._new = new
        self._samples = samples
        self._options = options
        self._threads = threads
        self._progress = progress
        self._recipe = read_recipe(options.recipe) if options.recipe else None
        if self._recipe and self._recipe.precision != options.precision:
            raise InputError(
                f"{options.recipe}: a recipe for {self._recipe.precision}",
                why=f"--precision is {options.precision}.",
                fix="give the recipe's precision.",
            )
        parts = self._recipe.parts if self._recipe else options.parts
        self._parts = frozenset(parts)
        block = self._recipe.block_size if self._recipe else options.block_size
        self._search = SearchOptions(options.precision, options.ranges, block)
        self._layers = [
            layers
            for stage in manifest.stages
            if (layers := StageLayers.of(new.source, stage, self._parts, self._search)).groups
        ]
        if not self._layers:
            raise InputError(
                f"no linear layers in {', '.join(parts)}",
                why="there is nothing to quantise.",
                fix="name other --parts, or another --block-size.",
            )

    def run(self) -> QuantisationReport:
        """All of it."""
        try:
            statistics = self._observe()
            choices = self._recipe.choices if self._recipe else self._choose(statistics)
            recipe, measured = self._decide(statistics, choices)
            agreement = self._compare()
        finally:
            self._progress.end()
        staged = self._new.staged().manifest
        report = make_report(
            recipe,
            self._samples,
            statistics,
            agreement,
            (self._new.source.manifest, staged),
            [name for layers in self._layers for name in layers.undivided],
            measured,
        )
        self._new.add_report(RECIPE, write_recipe(recipe))
        self._new.add_report(REPORT_JSON, json.dumps(to_json(report), indent=2) + "\n")
        self._new.add_report(REPORT_MARKDOWN, write_quantisation(report))
        return report

    def _observe(self) -> Statistics:
        backend = RangeBackend(threads=self._threads, parts=self._parts, seed=self._samples.seed)
        file = self._new.work / "statistics.npz"
        return observe(self._new.source, self._samples.samples, backend, file, self._progress)

    def _choose(self, statistics: Statistics) -> tuple[Choice, ...]:
        file = self._new.work / "choices.jsonl"
        done = _read_choices(file)
        groups = sum(len(layers.groups) for layers in self._layers)
        self._progress.begin("layer inputs", groups, len(done))

        def step(choice: Choice) -> None:
            with file.open("a", encoding="utf-8") as log:
                log.write(json.dumps(to_json(choice)) + "\n")
            self._progress.step()

        return tuple(
            choice
            for layers in self._layers
            for choice in layers.choose(
                statistics.seen.get(layers.stage.name, {}),
                self._search,
                _of_stage(done, layers.stage.name),
                step,
            )
        )

    def _decide(
        self, statistics: Statistics, choices: Sequence[Choice]
    ) -> tuple[Recipe, Accuracy | None]:
        """Which layers stay as they are, written into the bundle."""
        worst = [name for name, _ in worst_layers(choices)]
        drop = self._options.max_accuracy_drop
        if drop is None:
            kept = worst[: self._options.keep_high_precision]
            if self._recipe:
                kept = list(dict.fromkeys([*self._recipe.high_precision, *kept]))
            return self._write(statistics, choices, kept), None
        before = self._accuracy("before", self._new.source.manifest)
        for share in _SHARES:
            count = math.ceil(share * len(worst))
            recipe = self._write(statistics, choices, worst[:count])
            after = self._accuracy(str(count), self._new.manifest)
            self._progress.note(
                f"{count} of {len(worst)} layers in high precision: {after:.1f}, "
                f"before {before:.1f}"
            )
            if before - after <= drop:
                break
        return recipe, Accuracy(before, after)

    def _write(
        self, statistics: Statistics, choices: Sequence[Choice], kept: Sequence[str]
    ) -> Recipe:
        parts = tuple(self._recipe.parts if self._recipe else self._options.parts)
        recipe = Recipe(
            self._options.precision, parts, self._search.block_size, tuple(kept), tuple(choices)
        )
        made_of = hashlib.sha256(write_recipe(recipe).encode()).hexdigest()
        self._progress.begin("stages written", len(self._layers))
        count = 0
        for layers in self._layers:
            name = layers.stage.name
            forms, migration = layers.forms(
                _of_stage(choices, name),
                statistics.seen.get(name, {}),
                frozenset(kept),
                self._search.block_size,
            )
            write_stage(self._new, layers.stage, forms, migration, made_of)
            if layers.stage.kind == "head":
                self._read_by(layers.stage, forms)
            count += len(forms)
            self._progress.step()
        self._new.update(**self._changes(count, tuple(kept)))
        return recipe

    def _read_by(self, head: Stage, forms: Mapping[str, Form]) -> None:
        """A quantised head has numbers of its own, and reads the token table no more."""
        now = replace(head, data=(own_file(head),)) if forms else head
        stages = self._new.manifest.stages
        self._new.update(stages=tuple(now if it.name == head.name else it for it in stages))

    def _changes(self, layers: int, kept: tuple[str, ...]) -> Mapping[str, object]:
        manifest, precision = self._new.source.manifest, self._options.precision
        least = OPSETS[precision]
        quantisation = Quantisation(
            weights=precision,
            activations=INT8 if precision == INT8 else None,
            block_size=self._search.block_size if precision == INT4 else None,
            layers=layers,
            high_precision=kept,
        )
        return {
            "opset": max(manifest.opset, least),
            "other_dialects": {
                name: max(opset, least) for name, opset in manifest.other_dialects.items()
            },
            "quantisation": quantisation,
        }

    def _accuracy(self, name: str, manifest: Manifest) -> float:
        """Of the source or of what is staged; measured once."""
        file = self._new.work / f"accuracy-{name}.json"
        if file.is_file():
            return float(json.loads(file.read_text(encoding="utf-8")))
        source = manifest is self._new.source.manifest
        bundle = self._new.source if source else self._new.staged()
        found = accuracy(bundle, self._samples.samples, self._progress, self._threads)
        write_declared(file, found)
        return found

    def _compare(self) -> dict[str, Agreement]:
        samples = self._samples.samples[:_COMPARED]
        backend = AgreementBackend(self._new.staged(), threads=self._threads)
        options = GenerationOptions(max_new_tokens=NEW_TOKENS)
        self._progress.begin("samples compared", len(samples))
        with Session(self._new.source, backend) as session:
            for sample in samples:
                session.ask(sample.prompt, sample.images(), options)
                self._progress.step()
        return backend.found


def _of_stage(choices: Sequence[Choice], stage: str) -> dict[str, Choice]:
    """Those of one stage, by the groups' first layers; parts of a head share names."""
    return {choice.first: choice for choice in choices if choice.stage == stage}


def _read_choices(file: Path) -> list[Choice]:
    """Decisions of a former run; a line that was cut short is not one."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    whole, _, rest = text.rpartition("\n")
    if rest:
        write_whole(file, f"{whole}\n" if whole else "")
    return read_lines(Choice, file, fix=f"remove {file}.")
