"""The contract between bundle and runtime, spelt out."""

from __future__ import annotations

from atp_export.plan import make_plan
from atp_export.policies import atp_points
from atp_export.signatures import (
    head_signature,
    plan_signatures,
    segment_signature,
    vision_signature,
)
from atp_models.architecture import ModelSpec
from atp_models.pruning_config import PruningConfig
from atp_runtime.manifest import TensorSpec
from atp_runtime.tensor_names import SCORES

# tiny_config(kv_heads=2): hidden 64, 2 key/value heads of 16, 32 pixels, 16 tokens, vocabulary 512


def test_vision_takes_float32_pixels_and_gives_features(spec: ModelSpec) -> None:
    signature = vision_signature(spec, "float16")
    assert signature.inputs == (TensorSpec("pixel_values", "float32", ("images", 3, 32, 32)),)
    assert signature.outputs == (TensorSpec("image_features", "float16", ("images", 16, 64)),)


def test_the_head_gives_float32_logits_of_one_position(spec: ModelSpec) -> None:
    signature = head_signature(spec, "float16", 512)
    assert signature.inputs == (TensorSpec("hidden_states", "float16", (1, "tokens", 64)),)
    assert signature.outputs == (TensorSpec("logits", "float32", (1, 512)),)


def test_a_segment_takes_pasts_and_gives_new_keys_and_values_only(spec: ModelSpec) -> None:
    signature = segment_signature(spec, "float16", first=2, last=4)
    past, kept = (1, "past", 2, 16), (1, "kept", 2, 16)
    assert signature.inputs == (
        TensorSpec("hidden_states", "float16", (1, "tokens", 64)),
        TensorSpec("keep_indices", "int64", ("kept",)),
        TensorSpec("position_ids", "int64", (1, "kept")),
        TensorSpec("past_length", "int64", (1,)),
        TensorSpec("past_key_values.2.key", "float16", past),
        TensorSpec("past_key_values.2.value", "float16", past),
        TensorSpec("past_key_values.3.key", "float16", past),
        TensorSpec("past_key_values.3.value", "float16", past),
    )
    assert signature.outputs == (
        TensorSpec("hidden_states_out", "float16", (1, "kept", 64)),
        TensorSpec("present.2.key", "float16", kept),
        TensorSpec("present.2.value", "float16", kept),
        TensorSpec("present.3.key", "float16", kept),
        TensorSpec("present.3.value", "float16", kept),
    )


def test_a_scored_segment_takes_weights_and_gives_two_float32_vectors(spec: ModelSpec) -> None:
    plain = segment_signature(spec, "float16", first=0, last=1)
    scored = segment_signature(spec, "float16", first=0, last=1, scores=SCORES)
    assert scored.inputs[len(plain.inputs) :] == (
        TensorSpec("visual_weights", "float32", ("kept",)),
        TensorSpec("text_rows", "int64", ("rows",)),
        TensorSpec("text_weights", "float32", ("rows",)),
    )
    assert scored.outputs[len(plain.outputs) :] == (
        TensorSpec("scores.self", "float32", ("kept",)),
        TensorSpec("scores.cross", "float32", ("kept",)),
    )


def test_a_plan_scores_where_it_prunes_and_nowhere_else(spec: ModelSpec) -> None:
    plan = make_plan(
        spec, atp_points(PruningConfig(layers=(1, 3))), precision="fp32", dialect="native"
    )
    signatures = plan_signatures(plan)
    assert list(signatures) == ["vision", "segment_0", "segment_1", "segment_2", "head"]
    scored = [
        name
        for name, signature in signatures.items()
        if "scores.self" in [spec.name for spec in signature.outputs]
    ]
    assert scored == ["segment_0", "segment_1"]
