"""Policies that merge inside the tower: what they plan, and what exported bundles do with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from PIL import Image
from tests.export import exporting
from tests.export.exporting import checkpoints, parity
from tests.export.vision_graphs import squares
from transformers import LlavaForConditionalGeneration

from atp_calibration.quantisation.linear_layers import PARTS, linear_layers
from atp_export.compose import StageComposer
from atp_export.job import ExportJob, ExportOptions, prepare_job
from atp_export.parity import sampled
from atp_export.signatures import plan_signatures
from atp_models.architecture import read_architecture
from atp_models.checkpoint import Checkpoint
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_models.reference_vision import TowerLayer
from atp_runtime.errors import InputError
from atp_runtime.generation import GenerationOptions
from atp_runtime.manifest import VisionPruning, read_manifest
from atp_runtime.pruning_view import point_views
from atp_runtime.session import Session

MakeJob = Callable[..., ExportJob]
HEADS = 2  # of the tiny towers
TOWERS: dict[str, dict[str, Any]] = {
    "clip": {},
    "dinov2": {"vision": "dinov2", "feature_layer": -1},
    "siglip": {"vision": "siglip"},
    "full": {"strategy": "full"},
    "siglip full": {"vision": "siglip", "strategy": "full"},
    "two layers": {"feature_layer": [-2, -1]},
    "first layer": {"feature_layer": 1},
}

LAYERS: dict[str, dict[str, Any]] = {
    "illava_vit": {"layers": [0, 1]},
    "elip": {"layers": [1, 2], "keep": [0.75, 0.4]},
}


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint with one of `TOWERS`; shared, so no test may change it."""
    return checkpoints(tmp_path_factory, TOWERS)


@pytest.fixture(scope="session")
def exported(tower: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bundle that merges behind layers 0 and 1, not yet compared; each is made once."""
    made: dict[tuple[str, str], ExportJob] = {}

    def export(name: str, policy: str = "illava_vit") -> ExportJob:
        if (name, policy) not in made:
            first, _, second = policy.partition("+")
            settings = LAYERS[first]
            if second:
                settings = {f"{first}.{name}": value for name, value in settings.items()}
            bundle = tmp_path_factory.mktemp("merged") / "bundle"
            made[name, policy] = exporting.exported(tower(name), bundle, policy, settings)
        return made[name, policy]

    return export


def test_patches_leave_in_equal_steps(make_job: MakeJob) -> None:
    settings = {"layers": [0, 1], "ratio": 0.75}
    vision = make_job(policy="illava_vit", settings=settings).plan.vision
    assert vision is not None
    parameters = {"layers": [0, 1], "keep": [10, 4], "prefix": 0, "score": "received", "text": 0.0}
    assert vision.pruning == VisionPruning("tower_merge", parameters, most=4)
    assert not vision.cut


def test_one_layer_is_written_like_a_number(make_job: MakeJob) -> None:
    vision = make_job(policy="illava_vit", settings={"layers": 1}).plan.vision
    assert vision is not None
    assert (vision.pruning.parameters["layers"], vision.pruning.parameters["keep"]) == ([1], [8])


def test_the_papers_layers_are_scaled_to_the_tower(make_job: MakeJob) -> None:
    vision = make_job(policy="illava_vit").plan.vision
    assert vision is not None
    assert vision.pruning.parameters["layers"] == [0, 1]


def test_it_goes_with_a_policy_inside_the_decoder(make_job: MakeJob) -> None:
    both = make_job(policy="illava_vit+illava", settings={"illava.layer": 2}).plan
    assert both.vision is not None
    assert [it.pruning.rule for it in both.segments if it.pruning] == ["merge_rest"]
    assert make_job(policy="illava_vit+atp").plan.prunes


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ratio": 0}, "ratio is 0"),
        ({"ratio": 1.0}, "ratio is 1.0"),
        ({"ratio": -0.5}, "ratio is -0.5"),
        ({"ratio": 0.01}, "none of 16 patches would be merged"),
        ({"layers": [2]}, "behind the layers 2"),
        ({"layers": [-1, 0]}, "behind the layers -1, 0"),
        ({"layers": [1, 0]}, "behind the layers 1, 0"),
        ({"layers": [1, 1]}, "behind the layers 1, 1"),
        ({"layers": []}, "behind the layers none"),
        ({"keep": 3}, "unknown field 'keep'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    make_job: MakeJob, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        make_job(policy="illava_vit", settings=settings)


def test_a_tower_without_a_layer_to_gain_is_refused(
    make_job: MakeJob, tower: Callable[[str], Path]
) -> None:
    with pytest.raises(InputError, match="on features of the tower's layer 0"):
        make_job(tower("first layer"), policy="illava_vit")


def test_more_than_tensorrt_sorts_is_refused(make_job: MakeJob, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, tiny_config(image_size=512))
    with pytest.raises(InputError, match="leaves 4055 of 4096 patches at first"):
        make_job(tmp_path, policy="illava_vit", settings={"ratio": 0.01, "layers": [1]})


@pytest.mark.slow
def test_a_merge_makes_no_matrix_of_pairs_of_patches(tmp_path: Path) -> None:
    # 36 patches: no other axis of this tower is as long as what is left.
    write_random_checkpoint(tmp_path, tiny_config(image_size=48))
    job = prepare_job(tmp_path, tmp_path / "out", ExportOptions(policy="illava_vit"))
    spec = read_architecture(Checkpoint.open(tmp_path))
    graph = StageComposer(spec, dialect="native", dtype=torch.float32).vision(job.plan.vision)
    assert [squares(graph, patches) for patches in (36, 27, 18)] == [0, 0, 0]


def test_elip_keeps_shares_and_one_more_before_layers(make_job: MakeJob) -> None:
    settings = {"layers": [1, 2], "keep": [0.75, 0.5]}
    vision = make_job(policy="elip", settings=settings).plan.vision
    assert vision is not None
    assert vision.pruning.parameters == {
        "layers": [0, 1],
        "keep": [13, 9],
        "prefix": 0,
        "score": "class",
        "text": 0.2,
    }


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"keep": [0.5, 0.9, 0.4]}, "it must fall"),
        ({"keep": [1.0, 0.9, 0.4]}, "each must be from 0 to below 1"),
        ({"keep": [0.9, 0.4]}, "3 layers and 2 shares"),
        ({"layers": [1], "keep": [0.9, 0.4]}, "1 layers and 2 shares"),
        ({"layers": [2, 1], "keep": [0.9, 0.4]}, "once and rising"),
        ({"layers": [0], "keep": [0.4]}, "behind the layers -1"),
        ({"layers": [3], "keep": [0.4]}, "behind the layers 2"),
        ({"text": 1.5}, "text is 1.5"),
    ],
)
def test_settings_of_elip_that_make_no_sense_are_refused(
    make_job: MakeJob, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        make_job(policy="elip", settings=settings)


def test_elip_is_refused_where_there_is_no_class_token(
    make_job: MakeJob, tower: Callable[[str], Path]
) -> None:
    with pytest.raises(InputError, match="--policy elip on a siglip tower"):
        make_job(tower("siglip"), policy="elip")


def test_only_a_tower_that_is_told_the_question_takes_it(make_job: MakeJob) -> None:
    told, deaf = (
        plan_signatures(make_job(policy="elip", settings=settings).plan)["vision"].inputs
        for settings in ({}, {"text": 0})
    )
    assert [it.name for it in told] == ["pixel_values", "text_mean"]
    assert [it.name for it in deaf] == ["pixel_values"]


CASES = [
    *((name, "illava_vit") for name in TOWERS if name != "first layer"),
    ("clip", "elip"),
    ("dinov2", "elip"),
    ("two layers", "elip+atp"),
    ("clip", "illava_vit+atp"),
    ("clip", "illava_vit+illava"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_merging_bundle_computes_what_pytorch_does(exported: Any, case: tuple[str, str]) -> None:
    report = parity(exported(*case))
    assert report.passed
    tensors = {it.tensor for check in report.checks for it in check.measures}
    assert tensors >= {"scores.tower.0", "scores.tower.1", "image_features"}
    assert ("pruned" in {check.name for check in report.checks}) == ("+" in case[1])


@pytest.mark.slow
def test_a_sampled_comparison_looks_at_merges_if_there_is_memory(
    exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = parity(exported("clip"), "sampled")
    assert report.passed
    assert "scores.tower.1" in {it.tensor for check in report.checks for it in check.measures}
    monkeypatch.setattr(sampled, "affordable_tower_layers", lambda *_: 2)
    report = parity(exported("clip"), "sampled")
    assert report.passed
    (vision,) = [check for check in report.checks if check.name == "vision"]
    assert [it.tensor for it in vision.measures] == ["hidden_states.0"]


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "name"), [("illava_vit", "received"), ("elip", "attention")])
def test_parity_finds_another_score(
    exported: Any, monkeypatch: pytest.MonkeyPatch, policy: str, name: str
) -> None:
    def other(layer: TowerLayer, *_: Any) -> torch.Tensor:
        return layer.first_row

    monkeypatch.setattr(TowerLayer, name, property(other) if name == "received" else other)
    failed = {check.name for check in parity(exported("clip", policy)).checks if not check.passed}
    assert "vision" in failed


def photo(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((48, 64), Image.Resampling.BICUBIC)


class Reading:
    """Transformers' tower layer by layer, merging in NumPy in between."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = LlavaForConditionalGeneration.from_pretrained(checkpoint).eval()

    @torch.no_grad()
    def tokens(
        self, pixels: np.ndarray, keep: dict[int, int], text: np.ndarray | None = None
    ) -> tuple[np.ndarray, list[int]]:
        """Image tokens of a CLIP tower [kept, hidden], and where on the photo they lie."""
        tower = self.model.model.vision_tower
        states = tower.pre_layrnorm(tower.embeddings(torch.from_numpy(pixels)[None]))
        place = list(range(states.shape[1] - 1))
        for number in range(3):
            layer = tower.encoder.layers[number]
            entering = layer.layer_norm1(states)[0]
            query, keys = layer.self_attn.q_proj(entering), layer.self_attn.k_proj(entering)
            if text is not None:
                heard = self.heard(states[0, 0].double().numpy(), text)
                heard = layer.layer_norm1(torch.tensor(heard).float()[None])
                query = layer.self_attn.q_proj(heard)
            states = layer(states, None)
            if number in keep:
                scores = received(query.double().numpy(), keys.double().numpy())[1:]
                patches, stood = merged(states[0, 1:].double().numpy(), scores, keep[number])
                states = torch.cat((states[:, :1], torch.tensor(patches).float()[None]), dim=1)
                place = [place[at] for at in stood]
        return self.model.model.multi_modal_projector(states[:, 1:])[0].numpy(), place

    def heard(self, own: np.ndarray, text: np.ndarray) -> np.ndarray:
        """The class token with a fifth of the text, carried back by the projector's transposes."""
        projector = self.model.model.multi_modal_projector
        first, second = (
            it.weight.detach().double().numpy().T for it in (projector.linear_1, projector.linear_2)
        )
        carried = first @ (second @ text)
        share = np.linalg.norm(own) / np.linalg.norm(carried)
        return 0.8 * own + 0.2 * share * carried


def received(query: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The geometric mean of the attention that each position gets, heads averaged."""
    heads = []
    for q, k in zip(np.split(query, HEADS, axis=1), np.split(keys, HEADS, axis=1), strict=True):
        rows = np.exp(q @ k.T / q.shape[1] ** 0.5)
        mean = np.exp(np.log(rows / rows.sum(axis=1, keepdims=True)).mean(axis=0))
        heads.append(mean / mean.sum())
    return np.mean(heads, axis=0)


def merged(patches: np.ndarray, scores: np.ndarray, keep: int) -> tuple[np.ndarray, list[int]]:
    order = sorted(range(len(scores)), key=lambda at: (-scores[at], at))
    rest = order[keep - 1 :]
    made = {at: patches[at] for at in order[: keep - 1]}
    made[rest[0]] = scores[rest] @ patches[rest] / scores[rest].sum()
    return np.array([made[at] for at in sorted(made)]), sorted(made)


@pytest.mark.slow
def test_tokens_and_their_places_are_those_of_an_independent_reading(
    exported: Any, tower: Callable[[str], Path]
) -> None:
    reading = Reading(tower("clip"))
    with Session.open(exported("clip").bundle, threads=1) as session:
        for seed in range(5):
            shown = session.model.vision.read(photo(seed))
            found = session.model.vision.encode(shown)
            tokens, place = reading.tokens(shown.pixel_values, {0: 12, 1: 8})
            assert (4 * found.places.row + found.places.column).tolist() == place
            np.testing.assert_allclose(found.values, tokens, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_what_is_computed_of_the_question_is_not_quantised(exported: Any) -> None:
    model = ir.load(exported("clip", "elip").bundle / "onnx" / "vision.onnx")
    stored = {str(name) for name in model.graph.initializers if name.startswith("question.")}
    assert any("linear_2" in name for name in stored)
    layers = {layer.name for layer in linear_layers(model, frozenset(PARTS))}
    assert layers
    assert not layers & stored


@pytest.mark.slow
def test_what_elip_leaves_depends_on_the_question(exported: Any) -> None:
    with Session.open(exported("clip", "elip").bundle, threads=1) as session:
        vision, memory = session.model.vision, session.model.memory
        shown = vision.read(photo(0))
        asked, other, silent = (
            vision.encode(shown, it).values for it in ("What is this?", "a red car", "")
        )
        assert not np.array_equal(asked, other)
        assert np.isfinite(silent).all()
        first = memory.features(shown, "What is this?")
        assert memory.features(shown, "What is this?") is memory.features(shown) is first
        np.testing.assert_array_equal(first.tokens.values, asked)
        second = memory.features(shown, "a red car")
        assert second.number != first.number
        np.testing.assert_array_equal(second.tokens.values, other)


@pytest.mark.slow
def test_the_question_is_heard_as_an_independent_reading_has_it(
    exported: Any, tower: Callable[[str], Path]
) -> None:
    reading = Reading(tower("clip"))
    question = "What is on the table?"
    with Session.open(exported("clip", "elip").bundle, threads=1) as session:
        ids = session.model.tokenizer.encode(question, add_special_tokens=False)
        mean = reading.model.get_input_embeddings().weight[ids].mean(0).detach().double().numpy()
        for seed in range(5):
            shown = session.model.vision.read(photo(seed))
            found = session.model.vision.encode(shown, question)
            tokens, place = reading.tokens(shown.pixel_values, {0: 13, 1: 7}, mean)
            assert (4 * found.places.row + found.places.column).tolist() == place
            np.testing.assert_allclose(found.values, tokens, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_class_token_that_is_handed_on_comes_first(exported: Any) -> None:
    path = exported("full").bundle
    with Session.open(path, threads=1) as session:
        found = session.model.vision.encode(session.model.vision.read(photo(0)))
    assert (len(found), found.places.row[0], read_manifest(path).vision.most_tokens) == (9, -1, 9)
    assert (found.places.row[1:] >= 0).all()


@pytest.mark.slow
def test_answers_about_two_photos_are_shorter_and_drawn(exported: Any) -> None:
    path = exported("clip", "illava_vit+illava").bundle
    with Session.open(path, threads=1) as session:
        answer = session.ask("What?", [photo(0), photo(1)], GenerationOptions(4, ignore_end=True))
    assert answer.statistics.visual_tokens == 16
    before, inside = point_views(answer, 1, read_manifest(path).vision)
    assert (before.layer, int(before.kept.sum()), before.merged) == (None, 8, 0)
    assert (int(inside.kept.sum()), inside.merged) == (6, 1)


@pytest.mark.slow
def test_reports_name_the_rule(exported: Any) -> None:
    manifest = json.loads((exported("clip").bundle / "manifest.json").read_text())
    assert manifest["vision"]["pruning"]["rule"] == "tower_merge"
