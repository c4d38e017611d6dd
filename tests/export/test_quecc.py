"""QueCC from the checkpoint's weights to the bundle's answers; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from PIL import Image
from tests.compressor import Reading, drawn, with_compressor
from tests.export import exporting
from tests.export.command_line import Run, assert_refused
from tests.export.exporting import parity
from tests.routers import with_tensors
from transformers import LlavaForConditionalGeneration

from atp_calibration.quantisation.linear_layers import linear_layers
from atp_export.footprint import predict_footprint
from atp_export.job import ExportJob
from atp_export.signatures import plan_signatures
from atp_export.vision_policies import make_vision_policy
from atp_models.architecture import ModelSpec
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_models.reference_compressor import Compressor
from atp_runtime.errors import InputError
from atp_runtime.generation import GenerationOptions
from atp_runtime.manifest import VisionPruning, read_manifest
from atp_runtime.pruning_view import point_views
from atp_runtime.session import Session

MakeJob = Callable[..., ExportJob]
PATCHES, GRID = (4, 4), 2
TOWERS: dict[str, tuple[dict[str, Any], int]] = {  # and cells along each side
    "clip": ({}, GRID),
    "dinov2": ({"vision": "dinov2", "feature_layer": -1}, 1),
    "siglip": ({"vision": "siglip", "strategy": "full"}, 4),
    "two layers": ({"feature_layer": [1, -2]}, GRID),
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint with a compressor behind one of `TOWERS`; shared, so no test may change it."""
    made: dict[str, Path] = {}

    def checkpoint(name: str) -> Path:
        if name not in made:
            (config, grid), plain = TOWERS[name], tmp_path_factory.mktemp("plain")
            write_random_checkpoint(plain, tiny_config(**config))
            made[name] = with_compressor(plain, tmp_path_factory.mktemp("it") / "trained", grid)
        return made[name]

    return checkpoint


@pytest.fixture(scope="session")
def exported(
    trained: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., ExportJob]:
    """A bundle in fp32, not yet compared; each is made once."""
    made: dict[tuple[str, str], ExportJob] = {}

    def export(name: str, policy: str = "quecc") -> ExportJob:
        if (name, policy) not in made:
            setting = "quecc.grid" if "+" in policy else "grid"
            settings = {setting: TOWERS[name][1]}
            bundle = tmp_path_factory.mktemp("it") / "bundle"
            made[name, policy] = exporting.exported(trained(name), bundle, policy, settings)
        return made[name, policy]

    return export


def photo(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((48, 64), Image.Resampling.BICUBIC)


def test_a_photo_becomes_one_token_of_each_cell(
    make_job: MakeJob, trained: Callable[[str], Path]
) -> None:
    plan = make_job(trained("clip"), policy="quecc", settings={"grid": GRID}).plan
    assert plan.vision is not None
    assert plan.vision.pruning == VisionPruning("cell_queries", {"grid": 2}, most=4)
    assert not plan.vision.cut
    assert plan.axes["images"].maximum == 2048 // 16
    vision = plan_signatures(plan)["vision"]
    assert [it.name for it in vision.inputs] == ["pixel_values", "text_mean"]
    assert [it.shape for it in vision.outputs] == [("images", 4, 64)]


def test_the_checkpoint_may_choose_it(make_job: MakeJob, trained: Callable[[str], Path]) -> None:
    path = trained("clip")
    without = make_job(path)
    assert "has a compressor, which is not used" in str(without.notice)
    file = path / "pruning_config.json"
    try:
        file.write_text(json.dumps({"policy": "quecc", "grid": GRID}))
        chosen = make_job(path)
    finally:
        file.unlink()
    assert chosen.plan.vision is not None
    assert chosen.plan.vision.pruning.rule == "cell_queries"
    assert chosen.notice is None
    assert chosen.key() != without.key()
    extra = [predict_footprint(it.plan).stages[0].weight_bytes for it in (chosen, without)]
    stored = sum(it.numel() for it in drawn(chosen.plan.spec.vision, 64, GRID).values())
    assert extra[0] - extra[1] == 4 * stored


@pytest.mark.parametrize("prefix", ["quecc.", "model.quecc."])
def test_its_weights_are_found_in_both_layouts(
    make_job: MakeJob, checkpoint: Path, spec: ModelSpec, tmp_path: Path, prefix: str
) -> None:
    stored = drawn(spec.vision, spec.text.hidden, GRID)
    renamed = {prefix + name.removeprefix("quecc."): it for name, it in stored.items()}
    made = with_tensors(checkpoint, tmp_path / "trained", renamed)
    assert make_job(made, policy="quecc", settings={"grid": GRID}).plan.vision is not None


MISSHAPEN = [
    (None, "model.quecc.text.linear.weight is missing"),
    (("values.norm.bias", None), "model.quecc.values.norm.bias is missing"),
    (("downsample.weight", torch.zeros(32, 1, 4, 4)), "is [32, 1, 4, 4], not [32, 1, 2, 2]"),
    (("text.linear.weight", torch.zeros(32, 63)), "is [32, 63], not [32, 64]"),
    (("keys.norm.bias", torch.zeros(32, dtype=torch.int8)), "is torch.int8, not of a floating"),
]


@pytest.mark.parametrize(("change", "told"), MISSHAPEN, ids=[it[1] for it in MISSHAPEN])
def test_weights_that_do_not_fit_are_refused_by_name(
    checkpoint: Path, spec: ModelSpec, tmp_path: Path, run: Run, change: Any, told: str
) -> None:
    stored = drawn(spec.vision, spec.text.hidden, GRID) if change else {}
    if change:
        name, tensor = f"quecc.{change[0]}", change[1]
        stored = {**stored, name: tensor} if tensor is not None else stored
        if tensor is None:
            del stored[name]
    made = with_tensors(checkpoint, tmp_path / "trained", stored)
    words = ("--policy", "quecc", "--set", f"grid={GRID}")
    assert_refused(run(made, tmp_path / "bundle", *words), 2, told)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_weights_with_nan_are_refused(
    checkpoint: Path, spec: ModelSpec, tmp_path: Path, run: Run
) -> None:
    stored = drawn(spec.vision, spec.text.hidden, GRID)
    stored["quecc.attention.q_proj.bias"][3] = torch.nan
    made = with_tensors(checkpoint, tmp_path / "trained", stored)
    words = ("--quiet", "--dialect", "portable", "--policy", "quecc", "--set", f"grid={GRID}")
    found = run(made, tmp_path / "bundle", *words)
    assert_refused(found, 1, "'model.quecc.attention.q_proj.bias' holds NaN")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"grid": 0}, "grid is 0"),
        ({"grid": 3}, "4 x 4 patches on a grid of 3 x 3 cells"),
        ({"grid": 8}, "4 x 4 patches on a grid of 8 x 8 cells"),
        ({"grid": "two"}, "grid"),
        ({}, "grid"),
        ({"grid": 2, "keep": 3}, "unknown field 'keep'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    make_job: MakeJob, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        make_job(policy="quecc", settings=settings)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tokens": 17, "select_strategy": "full"}, "on 17 features of 4 x 4 patches"),
        ({"tokens": 15, "family": "siglip"}, "on 15 features of 4 x 4 patches"),
        ({"hidden": 36}, "on a tower of width 36"),
    ],
    ids=["a class token among them", "a patch missing", "heads of unequal width"],
)
def test_towers_that_it_cannot_stand_behind_are_refused(
    spec: ModelSpec, change: dict[str, Any], told: str
) -> None:
    policy = make_vision_policy("quecc", {"grid": GRID}, "here")
    with pytest.raises(InputError, match=told):
        policy.plan(replace(spec.vision, **change))


CASES = [
    *((name, "quecc") for name in TOWERS),
    ("clip", "quecc+fastv"),
    ("two layers", "quecc+atp"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_bundle_computes_what_pytorch_does(exported: Any, case: tuple[str, str]) -> None:
    report = parity(exported(*case))
    assert report.passed
    checks = {check.name for check in report.checks}
    assert checks >= {"vision", "reduced", "dense"}
    assert ("pruned" in checks) == ("+" in case[1])


@pytest.mark.slow
def test_half_precision_and_both_dialects_are_within_their_bounds(
    trained: Callable[[str], Path], tmp_path: Path, run: Run
) -> None:
    words = ("--quiet", "--policy", "quecc", "--set", f"grid={GRID}", "--parity", "sampled")
    assert run(trained("clip"), tmp_path / "bundle", *words).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "sampled"])
def test_parity_finds_a_compressor_that_hears_something_else(
    exported: Any, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    right = Compressor.of

    def deaf(self: Compressor, selected: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return right(self, selected, torch.zeros_like(text))

    monkeypatch.setattr(Compressor, "of", deaf)
    report = parity(exported("clip"), mode)
    assert "vision" in {check.name for check in report.checks if not check.passed}


@pytest.mark.slow
def test_tokens_are_those_of_an_independent_reading(
    exported: Any, trained: Callable[[str], Path]
) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(trained("clip")).eval()
    job = exported("clip")
    reading = Reading(drawn(job.plan.spec.vision, 64, GRID), PATCHES, GRID)
    question = "What is on the table?"
    with Session.open(job.bundle, threads=1) as session:
        ids = session.model.tokenizer.encode(question, add_special_tokens=False)
        text = model.get_input_embeddings().weight[ids].mean(0).detach().numpy()
        for seed in range(3):
            shown = session.model.vision.read(photo(seed))
            found = session.model.vision.encode(shown, question)
            pixels = torch.from_numpy(shown.pixel_values)[None]
            with torch.no_grad():
                states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
                tokens = reading.tokens(states[-2][0, 1:].numpy(), text)
                expected = model.model.multi_modal_projector(torch.from_numpy(tokens).float())
            np.testing.assert_allclose(found.values, expected.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_answers_about_two_photos_depend_on_the_question(exported: Any) -> None:
    path = exported("clip", "quecc+fastv").bundle
    with Session.open(path, threads=1) as session:
        vision, memory = session.model.vision, session.model.memory
        shown = vision.read(photo(0))
        asked, other, silent = (
            vision.encode(shown, it).values for it in ("What is this?", "a red car", "")
        )
        assert not np.array_equal(asked, other)
        assert np.isfinite(silent).all()
        first = memory.features(shown, "What is this?")
        assert memory.features(shown, "a red car").number != first.number
        answer = session.ask("What?", [photo(0), photo(1)], GenerationOptions(4, ignore_end=True))
    assert answer.statistics.visual_tokens == 2 * GRID**2
    before, inside = point_views(answer, 1, read_manifest(path).vision)
    # A cell is no patch, so none is drawn.
    assert (int(before.kept.sum()), before.merged) == (0, 4)
    assert (int(inside.kept.sum()), inside.merged) == (0, 2)


@pytest.mark.slow
def test_it_is_quantised_with_the_projector_but_for_the_question(exported: Any) -> None:
    model = ir.load(exported("clip").bundle / "onnx" / "vision.onnx")
    usual, asked = (
        {layer.name for layer in linear_layers(model, parts)}
        for parts in (None, frozenset({"projector"}))
    )
    assert not any("quecc" in name for name in usual)
    assert {name for name in asked if "quecc" in name} == {
        f"model.quecc.{name}.weight"
        for name in (
            *(f"{it}.linear_{at}" for it in ("queries", "keys", "values") for at in (1, 2)),
            *(f"attention.{it}_proj" for it in ("q", "k", "v", "out")),
        )
    }
