"""Tables for people: what `--dry-run` and `inspect` show in a terminal of 80 columns."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from atp_export.describe_bundle import print_bundle
from atp_export.describe_plan import print_plan
from atp_export.footprint import predict_footprint
from atp_export.plan import make_plan
from atp_export.policies import atp_points
from atp_export.tables import layer_range, megabytes, table
from atp_models.architecture import ModelSpec
from atp_models.pruning_config import PruningConfig
from atp_runtime.manifest import Manifest, read_manifest

WIDTH = 80


class Screen:
    """A console of 80 columns and what it showed."""

    def __init__(self) -> None:
        self._file = io.StringIO()
        self.console = Console(file=self._file, width=WIDTH)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._file.getvalue().splitlines()]

    def line(self, start: str) -> str:
        """The line that begins so, blanks folded."""
        (found,) = (line for line in self.lines if line.startswith(start))
        return " ".join(found.split())


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture(scope="module")
def manifest(tiny: Any) -> Manifest:
    return read_manifest(tiny.bundle)


def show_plan(spec: ModelSpec, screen: Screen, cut_at: tuple[int, ...]) -> None:
    points = atp_points(PruningConfig(layers=cut_at)) if cut_at else ()
    plan = make_plan(spec, points, precision="fp16", dialect="portable")
    print_plan(plan, predict_footprint(plan), screen.console)


def test_a_plan_shows_segments_with_their_layers_and_what_prunes_after_them(
    spec: ModelSpec, screen: Screen
) -> None:
    show_plan(spec, screen, (1, 3))
    assert screen.line("segment_0 ").endswith("atp, before layer 1")
    assert screen.line("segment_1 ").startswith("segment_1 1 to 2 ")
    assert screen.line("segment_2 ").startswith("segment_2 3 ")
    assert "before" not in screen.line("segment_2 ")


def test_a_plan_shows_shapes_memory_and_the_modules_it_fits_on(
    spec: ModelSpec, screen: Screen
) -> None:
    show_plan(spec, screen, (1, 3))
    text = "\n".join(screen.lines)
    for part in ("[1, past, 2, 16]", "[images, 3, 32, 32]", "tokens", "2048", "running"):
        assert part in text
    assert screen.line("Jetson Orin Nano 8GB") == "Jetson Orin Nano 8GB yes yes"
    assert "none was measured on a Jetson" in text


def test_a_dense_plan_shows_one_segment_and_no_scores(spec: ModelSpec, screen: Screen) -> None:
    show_plan(spec, screen, ())
    text = "\n".join(screen.lines)
    assert "segment_1" not in text
    assert "scores" not in text


def test_a_bundle_shows_stages_sizes_and_origin(manifest: Manifest, screen: Screen) -> None:
    print_bundle(manifest, screen.console)
    assert screen.lines[0].endswith(": fp32, portable (opset 18), 16 visual tokens on a 4 x 4 grid")
    assert screen.line("segment_1 ").endswith("MB atp, before layer 2")
    assert screen.line("made by:")
    assert any(line.startswith("The pruning modules are untrained") for line in screen.lines)


def test_a_bundle_shows_each_tensor_once_with_the_stages_that_have_it(
    manifest: Manifest, screen: Screen
) -> None:
    print_bundle(manifest, screen.console)
    assert screen.line("in   keep_indices").endswith("[kept] int64 segment_0..3")
    assert screen.line("in   text_rows").endswith("[rows] int64 segment_0..2")
    assert screen.line("in   hidden_states").endswith("[1, tokens, 64] float32 segment_0..3")
    assert screen.line("out  logits").endswith("[1, 512] float32 head")
    assert screen.line("in   past_key_values").startswith("in past_key_values.{l}.key|value ")


def test_nothing_is_cut_off_at_80_columns(
    spec: ModelSpec, manifest: Manifest, screen: Screen
) -> None:
    show_plan(spec, screen, (1, 2, 3))
    made = replace(manifest.provenance, command="atp-export a b", notice=None)
    print_bundle(replace(manifest, provenance=made), screen.console)
    assert max(map(len, screen.lines)) <= WIDTH
    assert not [line for line in screen.lines if "…" in line]


def test_a_sentence_is_not_broken_so_that_it_can_be_copied(
    manifest: Manifest, screen: Screen
) -> None:
    command = "atp-export " + "/a/long/path" * 20 + " bundle"
    origin = replace(manifest.provenance, command=command)
    print_bundle(replace(manifest, provenance=origin), screen.console)
    assert f"made by: {command}" in screen.lines


def test_text_of_strangers_is_no_markup(manifest: Manifest, screen: Screen) -> None:
    origin = replace(manifest.provenance, model="[/red] [bold]", notice="[/] [link=x]")
    first, *others = manifest.stages
    stages = (replace(first, name="[/a] [b]"), *others)
    print_bundle(replace(manifest, provenance=origin, stages=stages), screen.console)
    text = "\n".join(screen.lines)
    for part in ("[/red] [bold]", "[/] [link=x]", "[/a] [b]"):
        assert part in text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0.0 MB"), (1_250_000, "1.2 MB"), (999_000_000, "999.0 MB"), (14_130_000_000, "14.13 GB")],
)
def test_sizes_are_in_powers_of_ten(count: int, text: str) -> None:
    assert megabytes(count) == text


@pytest.mark.parametrize(("layers", "text"), [((0, 4), "0 to 3"), ((3, 4), "3"), (None, "")])
def test_layers_are_named_first_and_last(layers: tuple[int, int] | None, text: str) -> None:
    assert layer_range(layers) == text


def test_numbers_stand_on_the_right(screen: Screen) -> None:
    screen.console.print(table(("what", "size"), [("a", "1"), ("b", "1000")], right=("size",)))
    assert screen.lines == ["what  size", "a        1", "b     1000"]


def test_a_checkpoint_path_is_not_part_of_the_plan(
    spec: ModelSpec, screen: Screen, checkpoint: Path
) -> None:
    show_plan(spec, screen, (2,))
    assert str(checkpoint) not in "\n".join(screen.lines)
