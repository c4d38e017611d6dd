"""Policies before the decoder: what they plan and what they ask of a tower."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.export.exporting import checkpoints
from tests.export.towers import INSIDE, SETTINGS, TOWERS
from tests.export.vision_graphs import squares

from atp_export.compose import StageComposer
from atp_export.job import ExportJob
from atp_export.policies import POLICIES, read_settings
from atp_export.vision_plan import VisionPolicy
from atp_export.vision_policies import VISION_POLICIES, make_vision_policy
from atp_models.architecture import read_architecture
from atp_models.checkpoint import Checkpoint
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_runtime.errors import InputError
from atp_runtime.manifest import VisionPruning
from atp_runtime.pruning_point import PruningPoint

MakeJob = Callable[..., ExportJob]


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint with one of `TOWERS`; shared, so no test may change it."""
    return checkpoints(tmp_path_factory, TOWERS)


def test_a_policy_makes_the_plan(make_job: MakeJob) -> None:
    job = make_job(policy="visionzip", settings={"keep": 8, "contextual": 3})
    assert job.plan.vision is not None
    assert job.plan.vision.pruning == VisionPruning(
        "contextual", {"dominant": 5, "contextual": 3}, most=8, layer=2
    )
    assert job.plan.vision.cut
    assert not job.plan.prunes
    assert job.modules is None
    assert job.plan.axes["selected"].maximum == 8
    other = make_job(policy="visionzip", settings={"keep": 8, "contextual": 2})
    assert job.key() != other.key()


def test_a_policy_before_the_decoder_goes_with_one_inside_it(make_job: MakeJob) -> None:
    settings = {"fastervlm.keep": 8, "fastv.ratio": 0.75, "fastv.layer": 1}
    plan = make_job(policy="fastervlm+fastv", settings=settings).plan
    assert plan.vision is not None
    assert plan.vision.pruning.most == 8
    (point,) = [segment.pruning for segment in plan.segments if segment.pruning]
    assert point == PruningPoint(1, "top_k", {"ratio": 0.25, "score": "cross"}, queries="last")


def test_a_policy_before_the_decoder_goes_with_the_checkpoints_modules(make_job: MakeJob) -> None:
    alone, both = make_job(), make_job(policy="divprune+atp")
    assert [it.pruning for it in both.plan.segments] == [it.pruning for it in alone.plan.segments]
    assert both.plan.prunes
    assert both.plan.vision is not None
    elsewhere = make_job(policy="divprune+atp", prune_at=[2]).plan
    assert [it.last for it in elsewhere.segments if it.pruning] == [2]


def test_a_checkpoint_may_choose_a_policy(make_job: MakeJob, own_checkpoint: Path) -> None:
    file = own_checkpoint / "pruning_config.json"
    file.write_text(json.dumps({"policy": "divprune", "keep": 3}))
    vision = make_job(own_checkpoint).plan.vision
    assert vision is not None
    assert vision.pruning == VisionPruning("max_min_distance", {"keep": 3}, most=3)
    assert make_job(own_checkpoint, dense=True).plan.vision is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"policy": "fastervlm", "settings": {"ratio": 1.0}}, "ratio is 1.0"),
        ({"policy": "fastervlm", "settings": {"ratio": -0.1}}, "ratio is -0.1"),
        ({"policy": "divprune", "settings": {"ratio": 1.5}}, "ratio is 1.5"),
        ({"policy": "fastervlm", "settings": {"keep": 0}}, "keep is 0"),
        ({"policy": "fastervlm", "settings": {"keep": 17}}, "keep is 17"),
        ({"policy": "fastervlm", "settings": {"rate": 0.5}}, "unknown field 'rate'"),
        ({"policy": "fastervlm", "settings": {"layer": 3}}, "layer 3 of the tower"),
        ({"policy": "fastervlm", "settings": {"layer": -5}}, "layer -5 of the tower"),
        ({"policy": "visionzip"}, "keep is 64"),
        ({"policy": "visionzip", "settings": {"keep": 8}}, "contextual is 10"),
        ({"policy": "visionzip", "settings": {"keep": 8, "contextual": 0}}, "contextual is 0"),
        ({"policy": "prumerge", "settings": {"neighbours": -1}}, "neighbours is -1"),
        ({"policy": "prumerge_plus", "settings": {"samples": 0}}, "samples is 0"),
        ({"policy": "fastervlm+divprune"}, "fastervlm and divprune together"),
        ({"policy": "fastv+vtw"}, "fastv and vtw together"),
        ({"policy": "fastv+atp"}, "fastv and atp together"),
        ({"policy": "fastervlm+best"}, "unknown policy 'best'"),
        ({"policy": "fastervlm+fastv", "settings": {"ratio": 0.5}}, "setting 'ratio' with"),
        ({"policy": "fastervlm", "settings": {"fastv.ratio": 0.5}}, "setting 'fastv.ratio' with"),
        ({"policy": "divprune+atp", "settings": {"atp.layers": [1]}}, "settings of atp"),
        ({"policy": "divprune", "dense": True}, "--policy divprune with --dense"),
        ({"policy": "divprune+atp", "dense": True}, r"--policy divprune\+atp with --dense"),
        ({"policy": "divprune", "prune_at": [2]}, "--policy divprune with --prune-at"),
        (
            {
                "policy": "divprune+topk",
                "settings": {"divprune.keep": 4, "topk.keep": [4], "topk.layers": [1]},
            },
            "4 tokens are to stay before layer 1",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    make_job: MakeJob, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        make_job(**options)


def test_modules_are_no_policy_of_a_checkpoints_file(
    make_job: MakeJob, own_checkpoint: Path
) -> None:
    (own_checkpoint / "pruning_config.json").write_text(json.dumps({"policy": "divprune+atp"}))
    with pytest.raises(InputError, match=r"the policy 'divprune\+atp'"):
        make_job(own_checkpoint)


@pytest.mark.parametrize("policy", sorted({*VISION_POLICIES} - {"divprune", *INSIDE}))
@pytest.mark.parametrize(
    ("name", "told"),
    [("siglip", "on a siglip tower"), ("full", "on a checkpoint that hands the class token on")],
)
def test_a_policy_that_asks_the_class_token_is_refused_where_there_is_none_to_ask(
    make_job: MakeJob, tower: Callable[[str], Path], policy: str, name: str, told: str
) -> None:
    settings = {"keep": 8, "contextual": 2} if policy == "visionzip" else {}
    with pytest.raises(InputError, match=f"--policy {policy} {told}"):
        make_job(tower(name), policy=policy, settings=settings)


def test_a_policy_that_asks_a_layer_is_refused_where_none_is_computed(
    make_job: MakeJob, tower: Callable[[str], Path]
) -> None:
    with pytest.raises(InputError, match="on a tower without layers"):
        make_job(tower("no layer"), policy="fastervlm")


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_no_policy_makes_a_matrix_of_all_pairs_of_patches(tmp_path: Path, dialect: str) -> None:
    # 36 patches: no other axis of this tower is as long.
    write_random_checkpoint(tmp_path, tiny_config(image_size=48))
    spec = read_architecture(Checkpoint.open(tmp_path))
    composer = StageComposer(spec, dialect=dialect, dtype=torch.float32)
    plain = squares(composer.vision(), 36)
    # The tower's own attention does, in the dialect without a fused operator.
    assert (plain > 0) == (dialect == "portable")
    for name, words in SETTINGS.items():
        policy = make_vision_policy(name, read_settings(words), "here")
        # Behind a merge there are fewer patches.
        assert squares(composer.vision(policy.plan(spec.vision)), 36) <= plain


def test_every_policy_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
    assert not VISION_POLICIES.keys() & POLICIES.keys()
    for name, kind in VISION_POLICIES.items():
        assert issubclass(kind, VisionPolicy)
        assert f"| `{name}` |" in text
