"""What a quantisation did, for programs; `report_markdown` writes it for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atp_calibration.quantisation.agreement import Agreement
from atp_calibration.quantisation.recipe import Recipe
from atp_calibration.quantisation.statistics_file import Statistics
from atp_calibration.samples import Samples
from atp_runtime.manifest import Manifest

COSINE_BAR = 0.99


@dataclass(frozen=True)
class LayerRow:
    """A linear layer.

    Attributes:
        name: Its weight's.
        stage: Where it is.
        error: Of its output on the samples, as a share of its norm, were it quantised.
        quantised: Whether it is.
        alpha: See `Choice`.
        method: Likewise.
        threshold: Likewise.
        largest: Magnitude that entered it, before any migration.
    """

    name: str
    stage: str
    error: float
    quantised: bool
    alpha: float | None
    method: str | None
    threshold: float | None
    largest: float


@dataclass(frozen=True)
class StreamRow:
    """What enters a layer when the bundle prunes and when nothing is pruned, on equal samples.

    Attributes:
        layer: The first that reads the value.
        stage: Where it is.
        pruned: The largest magnitude and the 99.9th percentile.
        unpruned: Likewise.
    """

    layer: str
    stage: str
    pruned: tuple[float, float]
    unpruned: tuple[float, float]


@dataclass(frozen=True)
class StageRow:
    """How far a stage agrees with the original, on equal inputs, and what it weighs.

    Attributes:
        name: The stage's.
        runs: That were compared.
        cosine: Of its main output, the least of all runs.
        mean_cosine: Likewise, over all runs.
        norm_ratio: Quantised to original, the farthest from 1.
        bytes_before: Of its weights.
        bytes_after: Likewise.
    """

    name: str
    runs: int
    cosine: float
    mean_cosine: float
    norm_ratio: float
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class Accuracy:
    """Points of 100 on the samples, before and with so many layers in high precision."""

    before: float
    after: float


@dataclass(frozen=True)
class QuantisationReport:
    """A whole quantisation.

    Attributes:
        precision: "int8" or "int4".
        parts: Of the network.
        block_size: Inputs that share a scale in INT4.
        samples: That were run.
        skipped: Problems of those that could not be, by id.
        undivided: Layers whose inputs are no multiple of the block; they stay as they are.
        layers: By error, the largest first.
        streams: Where a pruning point is before the stage; in the order they run.
        stages: In the order they run.
        accuracy: None where it was not measured.
        passed: Whether every stage's mean cosine reaches `COSINE_BAR`.
    """

    precision: str
    parts: tuple[str, ...]
    block_size: int
    samples: int
    skipped: Mapping[str, str]
    undivided: tuple[str, ...]
    layers: tuple[LayerRow, ...]
    streams: tuple[StreamRow, ...]
    stages: tuple[StageRow, ...]
    accuracy: Accuracy | None
    passed: bool


def make_report(
    recipe: Recipe,
    samples: Samples,
    statistics: Statistics,
    agreement: Mapping[str, Agreement],
    manifests: tuple[Manifest, Manifest],
    undivided: Sequence[str],
    accuracy: Accuracy | None,
) -> QuantisationReport:
    """Puts the report together.

    Args:
        recipe: What was decided.
        samples: What was learned from.
        statistics: What was seen.
        agreement: By stage.
        manifests: Before and after, with the records of their files.
        undivided: See `QuantisationReport`.
        accuracy: Likewise.
    """
    too_long = dict.fromkeys(statistics.too_long, "longer than the model's positions")
    return QuantisationReport(
        precision=recipe.precision,
        parts=recipe.parts,
        block_size=recipe.block_size,
        samples=statistics.done - len(too_long),
        skipped={**{it.id: it.problem for it in samples.skipped}, **too_long},
        undivided=tuple(undivided),
        layers=_layers(recipe, statistics),
        streams=_streams(statistics, manifests[0]),
        stages=tuple(_stage(name, it, manifests) for name, it in agreement.items()),
        accuracy=accuracy,
        passed=all(it.mean_cosine >= COSINE_BAR for it in agreement.values()),
    )


def _layers(recipe: Recipe, statistics: Statistics) -> tuple[LayerRow, ...]:
    rows = [
        LayerRow(
            name=name,
            stage=choice.stage,
            error=error,
            quantised=name not in recipe.high_precision,
            alpha=choice.alpha,
            method=choice.method,
            threshold=choice.threshold,
            largest=statistics.seen[choice.stage][choice.first].maximum,
        )
        for choice in recipe.choices
        for name, error in choice.errors.items()
    ]
    rows.sort(key=lambda row: -row.error)
    return tuple(rows)


def _streams(statistics: Statistics, manifest: Manifest) -> tuple[StreamRow, ...]:
    pruned_before = False
    rows: list[StreamRow] = []
    for stage in manifest.segments:
        inputs = statistics.unpruned.get(stage.name, {}) if pruned_before else {}
        for layer, unpruned in inputs.items():
            pruned = statistics.pruned[stage.name][layer]
            rows.append(StreamRow(layer, stage.name, pruned, unpruned))
        pruned_before = pruned_before or stage.pruning is not None
    return tuple(rows)


def _stage(name: str, agreement: Agreement, manifests: tuple[Manifest, Manifest]) -> StageRow:
    sizes = [
        sum(manifest.files[file].bytes for file in manifest.stage(name).data)
        for manifest in manifests
    ]
    return StageRow(
        name,
        agreement.runs,
        agreement.cosine,
        agreement.mean_cosine,
        agreement.norm_ratio,
        bytes_before=sizes[0],
        bytes_after=sizes[1],
    )
