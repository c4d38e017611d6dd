"""VideoLLM-MoD against independent readings, from the rule to the bundle; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.export.command_line import Run, assert_refused
from tests.export.layouts import image_layout
from tests.routers import drawn, named, with_routers, with_tensors

from atp_export.cli import main as atp_export
from atp_export.job import ExportOptions, prepare_job
from atp_export.plan import make_plan
from atp_export.policies import make_policy
from atp_models.architecture import ModelSpec
from atp_runtime.errors import InputError
from atp_runtime.manifest import read_manifest
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.segment_entry import Entry, route_weights
from atp_runtime.selection import PointSelector, VisualTokens
from atp_runtime.structure import Structure

HIDDEN = 64


@dataclass(frozen=True)
class Pattern:
    """A router's scores of a sequence, and where its images are."""

    scores: np.ndarray
    images: tuple[range, ...]

    def visual(self) -> VisualTokens:
        index = np.array([at for image in self.images for at in image], dtype=np.int64)
        number = np.repeat(np.arange(len(self.images)), [len(image) for image in self.images])
        return VisualTokens(index, number, index, index)


def patterns(count: int = 200) -> Iterator[Pattern]:
    """Among them ties, one token, no image, two images, and scores below zero throughout."""
    random = np.random.default_rng(0)
    for number in range(count):
        images, begin = image_layout(random, number)
        scores = random.normal(size=begin + 4 * (number % 7 != 0))
        if number % 4 == 0:  # ties
            scores = np.round(scores)
        if number % 11 == 0:
            scores = -np.abs(scores) - 1
        yield Pattern(scores.astype(np.float32), images)


def routed_by(point: PruningPoint, pattern: Pattern) -> dict[int, float]:
    """What goes through the layer, and how much of its update it gets."""
    visual = pattern.visual()
    selection = PointSelector(point, {})(pattern.scores, pattern.scores, True, visual)
    place = Entry.of(selection, visual, len(pattern.scores)).place
    weights = route_weights(place, visual, pattern.scores)
    return dict(zip(place.tolist(), weights.tolist(), strict=True))


def rounded(number: float) -> int:
    return int(np.floor(number + 0.5))


@pytest.mark.parametrize("share", [{"ratio": 0.2}, {"ratio": 0.5}, {"ratio": 1.0}, {"keep": 5}])
def test_the_best_of_each_image_and_all_text_go_through(share: dict[str, float]) -> None:
    (point,) = make_policy("videollm_mod", {"layers": [3], **share}, "here").points(32)
    assert (point.before_layer, point.returns, point.merges) == (3, True, False)
    skipping = 0
    for pattern in patterns():
        seen = {at for image in pattern.images for at in image}
        expected = {at: 1.0 for at in range(len(pattern.scores)) if at not in seen}
        for image in pattern.images:
            scores = {at: np.float64(pattern.scores[at]) for at in image}
            best = sorted(image, key=lambda at: (-scores[at], at))
            count = rounded(share["ratio"] * len(best)) if "ratio" in share else int(share["keep"])
            expected |= {at: float(scores[at]) for at in best[:count]}
            skipping += max(len(best) - count, 0)
        assert routed_by(point, pattern) == expected
    assert skipping == 0 if share == {"ratio": 1.0} else skipping > 500


@pytest.fixture(scope="module")
def trained(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With routers in all layers but the first, two of which its configuration names."""
    made = with_routers(checkpoint, tmp_path_factory.mktemp("routed") / "checkpoint", (1, 2, 3))
    config = {"policy": "videollm_mod", "layers": [1, 3], "ratio": 0.25}
    (made / "pruning_config.json").write_text(json.dumps(config))
    return made


def exported(trained: Path, out: Path, *words: str) -> dict[str, Any]:
    assert atp_export([str(trained), str(out), "--quiet", *words]) == 0
    parity: dict[str, Any] = json.loads((out / "reports" / "parity.json").read_text())
    return parity


@pytest.mark.parametrize("mode", ["full", "sampled"])
def test_a_bundle_computes_what_the_routed_checkpoint_does(
    trained: Path, tmp_path: Path, mode: str
) -> None:
    words = ("--precision", "fp32", "--dialect", "portable", "--parity", mode)
    parity = exported(trained, tmp_path / "bundle", *words)
    assert parity["passed"] is True
    segments = read_manifest(tmp_path / "bundle").segments
    assert [stage.layers for stage in segments] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert [stage.routed for stage in segments] == [False, True, False, True]
    compared = {it["tensor"] for check in parity["checks"] for it in check["measures"]}
    assert any("scores.router" in name for name in compared)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--policy", "videollm_mod", "--set", "layers=1,2,3", "--set", "keep=5"),
        (
            *("--policy", "visionzip+videollm_mod", "--set", "visionzip.keep=8"),
            *("--set", "visionzip.contextual=3", "--set", "videollm_mod.layers=2"),
            *("--set", "videollm_mod.ratio=0.5"),
        ),
    ],
    ids=["neighbouring layers", "behind VisionZip"],
)
def test_so_do_bundles_in_fp16_and_both_dialects(
    trained: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    assert exported(trained, tmp_path / "bundle", *words)["passed"] is True


@pytest.mark.slow
def test_the_bundle_is_verified_against_its_checkpoint(
    trained: Path, tmp_path: Path, run: Run
) -> None:
    exported(trained, tmp_path / "bundle", "--precision", "fp32", "--dialect", "portable")
    found = run("verify", tmp_path / "bundle", "--checkpoint", trained)
    assert found.code == 0, found.err


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({}, "layers.1.router.weight is missing"),
        ({named(1): drawn(1, HIDDEN)[0]}, "layers.1.router.weight is [64], not [1, 64]"),
        ({named(1): drawn(1, HIDDEN // 2)}, "layers.1.router.weight is [1, 32], not [1, 64]"),
        ({named(1): drawn(1, HIDDEN).to(torch.int32)}, "is torch.int32, not of a floating type"),
    ],
    ids=["missing", "of one axis", "of another width", "integers"],
)
def test_routers_that_do_not_fit_are_refused_by_name(
    checkpoint: Path, tmp_path: Path, run: Run, tensors: dict[str, torch.Tensor], complaint: str
) -> None:
    made = with_tensors(checkpoint, tmp_path / "checkpoint", tensors)
    words = ("--policy", "videollm_mod", "--set", "layers=1", "--set", "ratio=0.5")
    assert_refused(run(made, tmp_path / "bundle", *words), 2, complaint)
    assert not (tmp_path / "bundle").exists()


def test_routers_with_nan_are_refused(checkpoint: Path, tmp_path: Path, run: Run) -> None:
    made = with_tensors(checkpoint, tmp_path / "it", {named(1): torch.full((1, HIDDEN), torch.nan)})
    words = ("--policy", "videollm_mod", "--set", "layers=1", "--set", "ratio=0.5")
    found = run(made, tmp_path / "bundle", "--quiet", *words)
    assert_refused(found, 1, "layers.1.router.weight' holds NaN")


def test_routers_that_are_not_used_are_spoken_of(trained: Path, tmp_path: Path) -> None:
    for options, unused in (
        (ExportOptions(), "layers 2,"),
        (ExportOptions(dense=True), "layers 1,2,3,"),
        (ExportOptions(policy="fastv", settings={"layer": 1}), "layers 1,2,3,"),
    ):
        notice = prepare_job(trained, tmp_path / "bundle", options).notice
        assert notice is not None
        assert unused in notice


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"layers": [1]}, "exactly one of keep and ratio"),
        ({"layers": [1], "ratio": 0.5, "keep": 3}, "exactly one of keep and ratio"),
        ({"layers": [1], "ratio": 1.5}, "ratio is 1.5, it must be from 0 to 1"),
        ({"layers": [1], "ratio": -0.1}, "ratio is -0.1"),
        ({"layers": [1], "keep": -1}, "keep is -1"),
        ({"layers": [], "ratio": 0.5}, "layers is empty"),
        ({"ratio": 0.5}, "layers"),
        ({"layers": [1], "share": 0.5}, "share"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        make_policy("videollm_mod", settings, "here")


@pytest.mark.parametrize(
    ("layers", "complaint"),
    [
        ([4], "layer 4 is beyond the decoder, whose last is 3"),
        ([2, 2], "layer 2 is named twice"),
        ([3, 1], "layer 1 stands after layer 3"),
        ([0], "layer 0 has no layer before it"),
    ],
)
def test_layers_that_there_are_not_are_refused(
    spec: ModelSpec, layers: list[int], complaint: str
) -> None:
    points = make_policy("videollm_mod", {"layers": layers, "ratio": 0.5}, "here").points(4)
    with pytest.raises(InputError, match=complaint):
        make_plan(spec, points, precision="fp32", dialect="portable")


def test_pruning_behind_a_routed_layer_needs_another_layer_between(spec: ModelSpec) -> None:
    (routed,) = make_policy("videollm_mod", {"layers": [1], "ratio": 0.5}, "here").points(4)
    for before, fine in ((2, False), (3, True)):
        points = (routed, PruningPoint(before, "keep_none", {}))
        if fine:
            plan = make_plan(spec, points, precision="fp32", dialect="portable")
            assert [it.first for it in plan.segments] == [0, 1, 2, 3]
        else:
            with pytest.raises(InputError, match="before layer 2, and layer 1 is routed"):
                make_plan(spec, points, precision="fp32", dialect="portable")


def test_a_structure_and_routers_are_refused_together(spec: ModelSpec) -> None:
    points = make_policy("videollm_mod", {"layers": [1], "ratio": 0.5}, "here").points(4)
    options = {"precision": "fp32", "dialect": "portable", "structure": Structure(window=3)}
    with pytest.raises(InputError, match="layer 1 is routed, and a structure"):
        make_plan(spec, points, **options)  # type: ignore[arg-type]


def test_atp_modules_and_routers_are_refused_together(trained: Path, run: Run) -> None:
    found = run(trained, "nowhere", "--policy", "atp+videollm_mod")
    assert_refused(found, 2, "atp and videollm_mod together")
