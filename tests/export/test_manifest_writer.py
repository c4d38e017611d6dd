from __future__ import annotations

import hashlib
from typing import Any

import pytest

from atp_models.checkpoint import Checkpoint
from atp_models.random_configs import tiny_config
from atp_runtime.bundle import Bundle
from atp_runtime.manifest import Embedding, Manifest, TextModel, VisionModel, read_manifest


@pytest.fixture(scope="module")
def manifest(tiny: Any) -> Manifest:
    return read_manifest(tiny.bundle)


def test_the_runtime_opens_what_was_written(tiny: Any, manifest: Manifest) -> None:
    assert Bundle.open(tiny.bundle, verify="full").manifest == manifest


def test_stages_come_in_the_order_they_run(manifest: Manifest) -> None:
    names = ["vision", "segment_0", "segment_1", "segment_2", "segment_3", "head"]
    assert [stage.name for stage in manifest.stages] == names
    assert [stage.kind for stage in manifest.stages] == ["vision", *["segment"] * 4, "head"]


def test_segments_name_their_layers_and_what_follows_them(manifest: Manifest) -> None:
    assert [stage.layers for stage in manifest.segments] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    points = [stage.pruning for stage in manifest.segments]
    assert [point.before_layer if point else None for point in points] == [1, 2, 3, None]
    assert [point.weights if point else None for point in points] == [
        "points.0.",
        "points.1.",
        "points.2.",
        None,
    ]


def test_every_file_but_the_manifest_has_its_size_and_hash(tiny: Any, manifest: Manifest) -> None:
    found = {
        path.relative_to(tiny.bundle).as_posix(): path
        for path in tiny.bundle.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert found.keys() == manifest.files.keys()
    for name, path in found.items():
        data = path.read_bytes()
        assert manifest.files[name].bytes == len(data)
        assert manifest.files[name].sha256 == hashlib.sha256(data).hexdigest()


def test_dimensions_are_those_of_the_config(manifest: Manifest) -> None:
    config = tiny_config()
    text = config.text_config
    assert manifest.text == TextModel(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        intermediate=text.intermediate_size,
        vocabulary=text.vocab_size,
        max_positions=text.max_position_embeddings,
    )
    assert manifest.vision == VisionModel(
        image_size=(32, 32),
        grid=(4, 4),
        tokens=16,
        prefix_tokens=0,
        skipped_patches=0,
        image_token_id=config.image_token_id,
    )


def test_precision_dialect_and_opset_are_named(manifest: Manifest) -> None:
    assert (manifest.precision, manifest.dialect, manifest.opset) == ("fp32", "portable", 18)
    assert manifest.dialects == ("portable",)
    assert manifest.embedding == Embedding("onnx/embed_tokens.npy", "float32")


def test_the_origin_is_told(tiny: Any, manifest: Manifest) -> None:
    origin = manifest.provenance
    assert origin.model == tiny.checkpoint.name
    assert origin.checkpoint_fingerprint == Checkpoint.open(tiny.checkpoint).fingerprint()
    assert {"torch", "transformers", "onnx", "atp-llava"} <= origin.packages.keys()
    assert "untrained" in str(origin.notice)


def test_every_axis_of_every_tensor_has_a_range(manifest: Manifest) -> None:
    named = {
        size
        for stage in manifest.stages
        for tensor in (*stage.inputs, *stage.outputs)
        for size in tensor.shape
        if isinstance(size, str)
    }
    assert named == manifest.axes.keys()


def test_a_dense_bundle_has_one_segment_and_no_pruning_weights(export_bundle: Any) -> None:
    manifest = read_manifest(export_bundle(tiny_config(), dense=True).bundle)
    assert [stage.layers for stage in manifest.segments] == [(0, 4)]
    assert manifest.pruning_weights is None
    assert manifest.provenance.notice is None
