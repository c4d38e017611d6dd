"""The bundle's manifest: the one thing that export and runtime share.

`manifest.json` is the JSON form of `Manifest`. Export writes it last, so a directory
without one is not a bundle. Every dimension that changes between calls is a named axis:

* `tokens`: N, the tokens entering a segment
* `kept`: N', the tokens that stay after the gather at the segment's entry
* `past`: P, the positions of the segment's cache that a call is given; how many of them hold
  keys and values is its input `past_length`
* `merged`: tokens that a segment makes of others at its entry, one at least; it need not be used
* `rows`: T, the text tokens whose attention the scorer averages
* `images`: the images of one call of the vision stage
* `others`, `visual`, `blocks`: rows that are told apart, see `atp_runtime.structure_rows`
* `selected`: what is left of an image before a projector that is a stage of its own
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from atp_runtime.errors import InputError
from atp_runtime.manifest_checks import REBUILD, check_parts, check_version
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.schema import from_json, to_json
from atp_runtime.structure import Structure
from atp_runtime.tensor_names import (
    MERGE_WEIGHTS,
    PLACES,
    ROUTE_WEIGHTS,
    ROWS,
)

FORMAT = "atp-bundle"
SCHEMA_VERSION = 2
MANIFEST_NAME = "manifest.json"
PORTABLE, NATIVE = "portable", "native"  # dialects


@dataclass(frozen=True)
class TensorSpec:
    """A named input or output; a string in `shape` is an axis of `Manifest.axes`."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class AxisRange:
    """The lengths an axis may take; `typical` is what engines are tuned for."""

    minimum: int
    typical: int
    maximum: int

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.typical <= self.maximum:
            raise ValueError(f"not a range: {self.minimum} <= {self.typical} <= {self.maximum}")


@dataclass(frozen=True)
class Stage:
    """One graph: `vision`, `segment_0` ... or `head`.

    Attributes:
        name: Unique in the bundle: `vision`, `projector` where a rule stands before it,
            `segment_0` ..., and `head`, or `head_0` ... where the head is cut along the
            vocabulary.
        kind: "vision", "projector", "segment" or "head".
        graph: The ONNX file, relative to the bundle.
        data: Files with its weights, relative to the bundle.
        inputs: In the graph's order.
        outputs: In the graph's order.
        layers: First and one past the last decoder layer of a segment; (0, 0) elsewhere.
        pruning: What follows a segment that ends at a pruning point.
        other_graphs: The same computation in the manifest's other dialects, from the same files
            of weights: ONNX files by dialect.
    """

    name: str
    kind: str
    graph: str
    data: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[int, int] = (0, 0)
    pruning: PruningPoint | None = None
    other_graphs: Mapping[str, str] = field(default_factory=dict)

    @property
    def tells_visual(self) -> bool:
        """Whether it is told which rows are visual, see `atp_runtime.structure_tables`."""
        return any(spec.name in (*ROWS, PLACES) for spec in self.inputs)

    @property
    def merges(self) -> bool:
        """Whether it can merge tokens of the segment before."""
        return any(spec.name == MERGE_WEIGHTS for spec in self.inputs)

    @property
    def routed(self) -> bool:
        """Whether it is a layer that tokens skip and come back behind."""
        return any(spec.name == ROUTE_WEIGHTS for spec in self.inputs)

    @property
    def scores(self) -> tuple[str, ...]:
        """The outputs that the rule at its end decides by."""
        return self.pruning.scores if self.pruning else ()


@dataclass(frozen=True)
class TextModel:
    """The decoder's dimensions."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    max_positions: int


@dataclass(frozen=True)
class VisionPruning:
    """What happens between the vision tower and the decoder.

    Attributes:
        rule: Name of the rule, see `atp_runtime.vision_rules`.
        parameters: The rule's numbers, by name.
        most: Tokens of an image that it leaves at most.
        layer: The tower's layer (0-indexed) whose attention and keys it decides by, if it does.
    """

    rule: str
    parameters: Mapping[str, Any]
    most: int
    layer: int | None = None


@dataclass(frozen=True)
class VisionModel:
    """What the vision stage takes and how its features lie on the photo.

    Attributes:
        image_size: Height and width of `pixel_values` in pixels.
        grid: Rows and columns of patches.
        tokens: Image features per image, in the order [prefix, grid row by row].
        prefix_tokens: Features before the grid (a class token), which have no place on it.
        skipped_patches: Patches missing at the grid's beginning.
        image_token_id: The prompt's placeholder that features replace.
        pruning: What thins them out before the decoder, if anything does.
    """

    image_size: tuple[int, int]
    grid: tuple[int, int]
    tokens: int
    prefix_tokens: int
    skipped_patches: int
    image_token_id: int
    pruning: VisionPruning | None = None

    @property
    def most_tokens(self) -> int:
        """Tokens of an image that reach the decoder, at most."""
        return self.pruning.most if self.pruning else self.tokens


@dataclass(frozen=True)
class Embedding:
    """The token embedding table, a `.npy` file of shape [vocabulary, hidden]."""

    file: str
    dtype: str


@dataclass(frozen=True)
class Provenance:
    """Where the bundle comes from."""

    model: str
    checkpoint_fingerprint: str
    command: str
    packages: Mapping[str, str]
    notice: str | None = None


@dataclass(frozen=True)
class Derivation:
    """A step that made a bundle out of another one.

    Attributes:
        command: The command line.
        source_manifest: SHA-256 of the other bundle's `manifest.json`.
        request: SHA-256 of that and of everything that was asked for; equal ones give equal
            bundles.
        packages: Versions by name.
    """

    command: str
    source_manifest: str
    request: str
    packages: Mapping[str, str]


@dataclass(frozen=True)
class Quantisation:
    """Which numbers the linear layers compute with, where not with `Manifest.precision`.

    Attributes:
        weights: "int8", per output channel, or "int4", per block of inputs.
        activations: "int8", per tensor, or None where they stay as they are.
        block_size: Inputs of a weight that share a scale; None for all.
        layers: How many layers it is.
        high_precision: Those that it could have been and is not, by their weights' names.
        tool: Whose checkpoint the integers were taken from, such as "awq"; None where they were
            made of the bundle's own weights.
    """

    weights: str
    activations: str | None
    block_size: int | None
    layers: int
    high_precision: tuple[str, ...] = ()
    tool: str | None = None


@dataclass(frozen=True)
class FileRecord:
    """What a file of the bundle must be: its size in bytes and its SHA-256 in hex."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A whole bundle. Paths are relative to its directory, with forward slashes.

    `precision` is that of hidden states and caches. `dialect` and `opset` are those of each
    stage's `graph`; `other_dialects` gives the opsets of its `other_graphs`. `derivations` are
    the steps behind the export, in the order they were taken. `structure` says which work visual
    tokens are spared, if any.
    """

    format: str
    schema_version: int
    precision: str
    dialect: str
    opset: int
    text: TextModel
    vision: VisionModel
    embedding: Embedding
    axes: Mapping[str, AxisRange]
    stages: tuple[Stage, ...]
    processor: str
    pruning_weights: str | None
    provenance: Provenance
    files: Mapping[str, FileRecord]
    other_dialects: Mapping[str, int] = field(default_factory=dict)
    quantisation: Quantisation | None = None
    derivations: tuple[Derivation, ...] = ()
    structure: Structure | None = None

    @property
    def dialects(self) -> tuple[str, ...]:
        """The dialects that the bundle holds, its own first."""
        return (self.dialect, *self.other_dialects)

    def in_dialect(self, name: str) -> Manifest:
        """The manifest whose `dialect` is that one: each stage's `graph` is written in it.

        Raises:
            InputError: The bundle has no graphs in that dialect.
        """
        if name == self.dialect:
            return self
        if name not in self.other_dialects:
            held = ", ".join(self.dialects)
            raise InputError(
                f"no graphs in the dialect {name!r}",
                why=f"the bundle was exported in {held}.",
                fix=f"export it with --dialect {name}, or with both dialects.",
            )
        opsets = {self.dialect: self.opset, **self.other_dialects}
        return replace(
            self,
            dialect=name,
            opset=opsets.pop(name),
            other_dialects=opsets,
            stages=tuple(_in_dialect(stage, self.dialect, name) for stage in self.stages),
        )

    def stage(self, name: str) -> Stage:
        """The stage of that name.

        Raises:
            InputError: The bundle has no such stage.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in self.stages)
        raise InputError(f"no stage {name!r}", why=f"the bundle has {names}.", fix=REBUILD)

    @property
    def projector(self) -> Stage | None:
        """The projector, where it is a stage of its own."""
        return next((stage for stage in self.stages if stage.kind == "projector"), None)

    @property
    def segments(self) -> tuple[Stage, ...]:
        """The decoder's segments, in the order they run."""
        return tuple(stage for stage in self.stages if stage.kind == "segment")

    @property
    def heads(self) -> tuple[Stage, ...]:
        """The LM head, or its parts in the order of the vocabulary."""
        return tuple(stage for stage in self.stages if stage.kind == "head")

    @property
    def hidden_dtype(self) -> str:
        """Of hidden states and of the caches."""
        return self.heads[0].inputs[0].dtype


def _in_dialect(stage: Stage, held: str, wanted: str) -> Stage:
    graphs = {held: stage.graph, **stage.other_graphs}
    return replace(stage, graph=graphs.pop(wanted), other_graphs=graphs)


def dump_manifest(manifest: Manifest) -> str:
    """The text of `manifest.json`."""
    return json.dumps(to_json(manifest), indent=2) + "\n"


def read_manifest(bundle: Path) -> Manifest:
    """Reads and checks `manifest.json` of a bundle directory.

    Raises:
        InputError: There is none, it is not JSON, its schema is newer or malformed, a path
            leaves the bundle, or its parts contradict each other.
    """
    path = bundle / MANIFEST_NAME
    if not path.is_file():
        raise InputError(
            f"{bundle}: no {MANIFEST_NAME}",
            why="export writes it last, so this is no bundle or an unfinished one.",
            fix="run atp-export with the same arguments again; it resumes where it stopped.",
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {error}", why="it is not JSON.", fix=REBUILD) from error
    check_version(value, path, FORMAT, SCHEMA_VERSION)
    manifest = from_json(Manifest, value, source=str(path), fix=REBUILD)
    check_parts(manifest, path)
    return manifest
