from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from atp_export.engines.options import EngineOptions
from atp_export.engines.profiles import stage_profiles, tensor_shape
from atp_export.engines.samples import moments, sample_inputs
from atp_runtime.manifest import AxisRange, Manifest, Stage, TensorSpec
from atp_runtime.tensor_names import MERGE_WEIGHTS

Make = Callable[..., Manifest]


def calls(manifest: Manifest, stage: Stage, **options: int) -> dict[str, dict[str, int]]:
    profiles = stage_profiles(manifest, stage, EngineOptions(**options))
    return {moment.name: dict(moment.lengths) for moment in moments(profiles)}


def test_segments_are_tried_in_prefill_in_a_later_turn_and_in_decode(make_manifest: Make) -> None:
    manifest = make_manifest(longest=2048, visual=576, text=64)
    found = calls(manifest, manifest.stage("segment_0"))
    assert list(found) == ["prefill", "turn", "decode"]
    assert found["prefill"]["past"] == 0
    assert found["turn"]["past"] > 0
    assert found["decode"]["tokens"] == found["decode"]["kept"] == 1
    assert found["decode"]["past"] > 1


@pytest.mark.parametrize("longest", [1, 2, 5, 50, 4096])
def test_every_call_is_one_that_its_profile_takes(make_manifest: Make, longest: int) -> None:
    manifest = make_manifest(longest=longest)
    for stage in manifest.stages:
        profiles = stage_profiles(manifest, stage, EngineOptions())
        for moment in moments(profiles):
            profile = profiles[-1] if moment.name == "decode" else profiles[0]
            assert profile.admits(moment.lengths)


@pytest.mark.parametrize("longest", [1, 4, 2048])
def test_inputs_have_the_shapes_and_types_of_the_manifest(
    make_manifest: Make, longest: int
) -> None:
    manifest = make_manifest(longest=longest)
    for stage in manifest.stages:
        for lengths in calls(manifest, stage).values():
            inputs = sample_inputs(stage, lengths)
            assert list(inputs) == [tensor.name for tensor in stage.inputs]
            for tensor in stage.inputs:
                assert inputs[tensor.name].shape == tensor_shape(tensor, lengths)
                assert inputs[tensor.name].dtype == tensor.dtype


def test_indices_mean_what_they_mean_in_a_conversation(make_manifest: Make) -> None:
    manifest = make_manifest(longest=2048)
    stage = manifest.stage("segment_0")
    for lengths in calls(manifest, stage).values():
        inputs = sample_inputs(stage, lengths)
        keep = inputs["keep_indices"]
        assert (np.diff(keep) > 0).all()
        assert 0 <= keep.min() <= keep.max() < lengths["tokens"]
        assert (inputs["position_ids"][0] == keep + inputs["past_length"]).all()
        rows = inputs["text_rows"]
        assert 0 <= rows.min() <= rows.max() < lengths["kept"]
        assert inputs["text_weights"].sum() == pytest.approx(1)
        assert inputs["visual_weights"].sum() == pytest.approx(1)


def test_a_merged_token_is_kept_in_prefill_where_tokens_can_be_merged(make_manifest: Make) -> None:
    manifest = make_manifest(longest=2048)
    manifest = replace(manifest, axes={**manifest.axes, "merged": AxisRange(1, 1, 1024)})
    stage = manifest.stage("segment_1")
    weights = TensorSpec(MERGE_WEIGHTS, "float32", ("merged", "tokens"))
    stage = replace(stage, inputs=(*stage.inputs, weights))
    for moment, lengths in calls(manifest, stage).items():
        inputs = sample_inputs(stage, lengths)
        merged = inputs["keep_indices"] >= lengths["tokens"]
        assert merged.sum() == (moment != "decode")
        assert inputs[MERGE_WEIGHTS].shape == (1, lengths["tokens"])
        assert inputs[MERGE_WEIGHTS].sum() == pytest.approx(1)
        assert (np.diff(inputs["position_ids"][0]) > 0).all()


def test_past_is_padded_in_a_decode_step_alone(make_manifest: Make) -> None:
    manifest = make_manifest(longest=2048)
    stage = manifest.stage("segment_0")
    for moment, lengths in calls(manifest, stage).items():
        behind = lengths["past"] - sample_inputs(stage, lengths)["past_length"]
        assert (behind > 0) == (moment == "decode")


def test_some_tokens_are_dropped_in_prefill(make_manifest: Make) -> None:
    manifest = make_manifest(longest=2048)
    lengths = calls(manifest, manifest.stage("segment_1"))["prefill"]
    assert lengths["kept"] < lengths["tokens"]


def test_inputs_are_the_same_on_every_call(make_manifest: Make) -> None:
    manifest = make_manifest()
    stage = manifest.stage("segment_0")
    lengths = calls(manifest, stage)["turn"]
    first, again = sample_inputs(stage, lengths), sample_inputs(stage, lengths)
    assert all((first[name] == again[name]).all() for name in first)
