from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from atp_export.job import ExportJob
from atp_models.atp import FILE_NAME as MODULES
from atp_models.atp import AtpModules
from atp_models.pruning_config import PruningConfig, write_pruning_config
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_runtime.errors import InputError

MakeJob = Callable[..., ExportJob]


def points(job: ExportJob) -> list[int]:
    return [segment.last for segment in job.plan.segments[:-1]]


def redundancy(job: ExportJob) -> set[str]:
    return {s.pruning.parameters["redundancy"] for s in job.plan.segments if s.pruning}


def train(checkpoint: Path, *layers: int, **options: Any) -> PruningConfig:
    """Gives a checkpoint pruning modules."""
    config = PruningConfig(layers=layers, min_keep=2, **options)
    write_pruning_config(config, checkpoint)
    AtpModules(config).initialise().save(checkpoint / MODULES)
    return config


def test_the_papers_fractions_of_the_depth_are_the_default(make_job: MakeJob) -> None:
    # 12.5, 43.75 and 75 % of 4 layers: 0.5, 1.75 and 3
    assert points(make_job()) == [1, 2, 3]


def test_layers_can_be_chosen(make_job: MakeJob) -> None:
    assert points(make_job(prune_at=[2])) == [2]


def test_the_checkpoints_own_layers_come_before_the_papers(
    make_job: MakeJob, own_checkpoint: Path
) -> None:
    write_pruning_config(PruningConfig(layers=(3,), min_keep=5), own_checkpoint)
    job = make_job(own_checkpoint)
    assert points(job) == [3]
    point = job.plan.segments[0].pruning
    assert point is not None
    assert point.parameters["min_keep"] == 5


def test_chosen_layers_keep_the_checkpoints_other_settings(
    make_job: MakeJob, own_checkpoint: Path
) -> None:
    write_pruning_config(PruningConfig(layers=(3,), min_keep=5), own_checkpoint)
    point = make_job(own_checkpoint, prune_at=[1]).plan.segments[0].pruning
    assert point is not None
    assert (point.before_layer, point.parameters["min_keep"]) == (1, 5)


@pytest.mark.parametrize("chosen", ["both", "self", "cross", "none"])
def test_what_the_redundancy_is_made_of_can_be_chosen(make_job: MakeJob, chosen: str) -> None:
    assert redundancy(make_job()) == {"both"}
    job = make_job(redundancy=chosen)
    assert redundancy(job) == {chosen}
    assert job.modules is not None
    assert job.modules.config.redundancy == chosen


def test_the_checkpoints_own_redundancy_counts_unless_another_is_chosen(
    make_job: MakeJob, own_checkpoint: Path
) -> None:
    train(own_checkpoint, 1, 3, redundancy="self")
    for options in ({}, {"redundancy": "self"}):
        job = make_job(own_checkpoint, **options)
        assert redundancy(job) == {"self"}
        assert job.notice is None


def test_modules_trained_with_another_redundancy_are_taken_with_a_notice(
    make_job: MakeJob, own_checkpoint: Path
) -> None:
    train(own_checkpoint, 1, 3, redundancy="self")
    own, other = make_job(own_checkpoint), make_job(own_checkpoint, redundancy="cross")
    assert own.modules is not None
    assert other.modules is not None
    found = other.modules.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in own.modules.state_dict().items())
    assert "trained with redundancy 'self' and decide by 'cross'" in str(other.notice)


def test_a_redundancy_is_refused_when_nothing_would_decide(
    make_job: MakeJob, own_checkpoint: Path
) -> None:
    train(own_checkpoint, 1, 3, strides=())
    with pytest.raises(InputError, match="--redundancy none") as caught:
        make_job(own_checkpoint, redundancy="none")
    assert "strides" in caught.value.why


def test_a_redundancy_is_refused_when_nothing_is_pruned(make_job: MakeJob) -> None:
    with pytest.raises(InputError, match="--redundancy self") as caught:
        make_job(dense=True, redundancy="self")
    assert "nothing is pruned" in caught.value.why


def test_dense_is_one_segment_without_modules_or_notice(make_job: MakeJob) -> None:
    job = make_job(dense=True)
    assert len(job.plan.segments) == 1
    assert not job.plan.prunes
    assert job.modules is None
    assert job.notice is None


def test_a_decoder_of_one_layer_is_dense(make_job: MakeJob, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "one", tiny_config(layers=1))
    assert len(make_job(tmp_path / "one").plan.segments) == 1


@pytest.mark.parametrize(
    ("layers", "complaint"),
    [
        ([0], "layer 0 has no layer before it"),
        ([99], "layer 99 is beyond the decoder"),
        ([2, 2], "layer 2 is named twice"),
        ([3, 1], "layer 1 stands after layer 3"),
        ([-1], "layer -1 has no layer before it"),
    ],
)
def test_impossible_layers_are_refused_with_the_range_there_is(
    make_job: MakeJob, layers: list[int], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        make_job(prune_at=layers)
    assert "1 to 3" in caught.value.why


def test_untrained_modules_are_made_and_noticed(make_job: MakeJob) -> None:
    job = make_job()
    assert job.modules is not None
    assert "untrained" in str(job.notice)


def test_untrained_modules_are_the_same_each_time(make_job: MakeJob) -> None:
    first, second = make_job().modules, make_job().modules
    assert first is not None
    assert second is not None
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


def test_trained_modules_are_taken_without_a_notice(
    make_job: MakeJob, own_checkpoint: Path
) -> None:
    train(own_checkpoint, 1, 3)
    tensors = load_file(own_checkpoint / MODULES)
    tensors["points.1.spatial.bias"] = torch.tensor([0.75])
    save_file(tensors, own_checkpoint / MODULES)
    job = make_job(own_checkpoint)
    assert job.notice is None
    assert job.modules is not None
    assert job.modules.state_dict()["points.1.spatial.bias"].tolist() == [0.75]


def test_modules_trained_for_other_layers_are_refused(
    make_job: MakeJob, own_checkpoint: Path
) -> None:
    train(own_checkpoint, 1, 3)
    with pytest.raises(InputError, match="--prune-at 1,2") as caught:
        make_job(own_checkpoint, prune_at=[1, 2])
    assert "1,3" in caught.value.why
    assert points(make_job(own_checkpoint, prune_at=[1, 3])) == [1, 3]


def test_stored_layers_beyond_the_decoder_are_refused(
    make_job: MakeJob, own_checkpoint: Path
) -> None:
    write_pruning_config(PruningConfig(layers=(4, 14, 24)), own_checkpoint)
    with pytest.raises(InputError, match="layer 24 is beyond the decoder"):
        make_job(own_checkpoint)


def test_a_card_is_quoted_before_what_is_said_of_the_modules(
    make_job: MakeJob, own_checkpoint: Path
) -> None:
    (own_checkpoint / "demo_card.json").write_text(json.dumps({"notice": "A demo."}))
    notice = str(make_job(own_checkpoint).notice)
    assert notice.startswith("A demo. ")
    assert "untrained" in notice
    assert make_job(own_checkpoint, dense=True).notice == "A demo."


@pytest.mark.parametrize("card", ["{", "[]", "nonsense"])
def test_a_damaged_card_is_refused_by_name(
    make_job: MakeJob, own_checkpoint: Path, card: str
) -> None:
    (own_checkpoint / "demo_card.json").write_text(card)
    with pytest.raises(InputError, match=r"demo_card\.json"):
        make_job(own_checkpoint)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(
    make_job: MakeJob, own_checkpoint: Path
) -> None:
    tensors = load_file(own_checkpoint / "model.safetensors")
    name = "language_model.model.layers.2.mlp.up_proj.weight"
    del tensors[name]
    save_file(tensors, own_checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"layers\.2\.mlp\.up_proj"):
        make_job(own_checkpoint)


def test_a_directory_that_is_no_checkpoint_is_refused(make_job: MakeJob, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError):
            make_job(path)


def test_equal_jobs_have_equal_keys_wherever_the_bundle_goes(
    make_job: MakeJob, tmp_path: Path
) -> None:
    keys = {make_job().key(), replace(make_job(), command="other words").key()}
    keys.add(make_job(bundle=tmp_path / "elsewhere").key())
    assert len(keys) == 1


def test_every_option_changes_the_key(make_job: MakeJob) -> None:
    jobs = [
        make_job(),
        make_job(precision="fp16"),
        make_job(dialect="native"),
        make_job(prune_at=[1]),
        make_job(dense=True),
        make_job(redundancy="none"),
        make_job(max_tokens=512),
    ]
    assert len({job.key() for job in jobs}) == len(jobs)


def test_everything_of_the_checkpoint_that_goes_into_the_bundle_changes_the_key(
    make_job: MakeJob, own_checkpoint: Path
) -> None:
    keys = [make_job(own_checkpoint).key()]

    def change(name: str, content: bytes) -> None:
        (own_checkpoint / name).write_bytes(content)
        keys.append(make_job(own_checkpoint).key())

    change("chat_template.jinja", b"{{ messages }}")
    change("generation_config.json", b'{"eos_token_id": 7}')
    change("demo_card.json", b'{"notice": "Beware."}')
    tensors = load_file(own_checkpoint / "model.safetensors")
    tensors["language_model.model.norm.weight"] += 1
    save_file(tensors, own_checkpoint / "model.safetensors", metadata={"format": "pt"})
    keys.append(make_job(own_checkpoint).key())
    train(own_checkpoint, 1, 2, 3)
    keys.append(make_job(own_checkpoint).key())
    tensors = load_file(own_checkpoint / MODULES)
    tensors["points.0.shared.bias"] += 1
    save_file(tensors, own_checkpoint / MODULES)
    keys.append(make_job(own_checkpoint).key())
    assert len(set(keys)) == len(keys)
