"""Bundles that compute something else: parity must say so, and where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atp_export.job import ExportOptions, prepare_job
from atp_export.parity import ParityReport, run_parity

LAYER = "model.language_model.layers.{}."
# The first, one between, and the last.
LAYERS = (0, 1, 3)
MATRICES = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
OTHERS = (
    ("norm.weight", "head"),
    ("lm_head.weight", "head"),
    ("model.multi_modal_projector.linear_1.weight", "vision"),
    ("model.multi_modal_projector.linear_2.weight", "vision"),
    ("model.vision_tower.encoder.layers.1.self_attn.out_proj.weight", "vision"),
    ("model.vision_tower.encoder.layers.2.mlp.fc2.weight", "vision"),
)
Tamper = Callable[[Path, str, Callable[[np.ndarray], np.ndarray]], Path]


def parity(checkpoint: Path, bundle: Path, mode: str, precision: str = "fp16") -> ParityReport:
    job = prepare_job(
        checkpoint,
        bundle,
        ExportOptions(precision=precision, dialect="portable", prune_at=(3,), dense=False),
    )
    return run_parity(
        job.checkpoint, job.plan.spec, job.plan, bundle, mode=mode, report=lambda _: None
    )


def failed_stages(report: ParityReport) -> list[str]:
    return [check.name for check in report.checks if check.scope == "stage" and not check.passed]


@pytest.mark.parametrize("mode", ["full", "sampled"])
def test_nothing_fails_when_nothing_was_changed(half_portable: Any, mode: str) -> None:
    assert parity(*half_portable, mode).passed


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("layer", LAYERS)
def test_one_percent_on_any_weight_of_a_layer_is_caught_in_fp16(
    half_portable: Any, tamper: Tamper, layer: int, matrix: str
) -> None:
    name = LAYER.format(layer) + matrix + ".weight"
    bundle = tamper(half_portable.bundle, name, lambda values: values * 1.01)

    report = parity(half_portable.checkpoint, bundle, "sampled")

    assert not report.passed
    assert failed_stages(report) == [f"segment_{int(layer >= 3)}"]


@pytest.mark.parametrize(("name", "stage"), OTHERS)
def test_one_percent_on_weights_around_the_decoder_is_caught_in_fp16(
    half_portable: Any, tamper: Tamper, name: str, stage: str
) -> None:
    bundle = tamper(half_portable.bundle, name, lambda values: values * 1.01)

    assert failed_stages(parity(half_portable.checkpoint, bundle, "sampled")) == [stage]


@pytest.mark.parametrize("matrix", ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"])
def test_one_percent_is_caught_between_layers_when_everything_is_compared(
    half_portable: Any, tamper: Tamper, matrix: str
) -> None:
    name = LAYER.format(1) + matrix + ".weight"
    bundle = tamper(half_portable.bundle, name, lambda values: values * 1.01)

    report = parity(half_portable.checkpoint, bundle, "full")

    assert failed_stages(report) == ["segment_0"]
    assert not report.passed


@pytest.mark.parametrize("mode", ["full", "sampled"])
def test_a_wrong_embedding_row_is_caught(half_portable: Any, tamper: Tamper, mode: str) -> None:
    bundle = tamper(
        half_portable.bundle, LAYER.format(0) + "mlp.up_proj.weight", lambda values: values
    )
    table = np.load(bundle / "onnx/embed_tokens.npy", mmap_mode="r+")
    table[:] = np.roll(table, 1, axis=0)

    assert not parity(half_portable.checkpoint, bundle, mode).passed


@pytest.mark.parametrize("mode", ["full", "sampled"])
def test_weights_that_are_not_numbers_are_caught(
    half_portable: Any, tamper: Tamper, mode: str
) -> None:
    name = LAYER.format(1) + "mlp.down_proj.weight"
    bundle = tamper(half_portable.bundle, name, lambda values: values * np.nan)

    report = parity(half_portable.checkpoint, bundle, mode)

    assert not report.passed
    assert failed_stages(report)[0] == "segment_0"


def test_the_rule_that_cannot_decide_is_named(half_portable: Any, tamper: Tamper) -> None:
    name = LAYER.format(2) + "self_attn.q_proj.weight"
    bundle = tamper(half_portable.bundle, name, lambda values: values * np.nan)

    pruned = parity(half_portable.checkpoint, bundle, "full").checks[-1]

    assert (pruned.name, pruned.passed) == ("pruned", False)
    assert "NaN" in (pruned.problem or "")


@pytest.mark.parametrize("scale", [1.0003, 0.9997])
def test_much_less_is_caught_in_fp32(grouped: Any, tamper: Tamper, scale: float) -> None:
    name = LAYER.format(1) + "self_attn.v_proj.weight"
    bundle = tamper(grouped.bundle, name, lambda values: values * scale)

    report = parity(grouped.checkpoint, bundle, "sampled", "fp32")

    assert failed_stages(report) == ["segment_0"]


def test_heads_in_another_order_are_caught(half_portable: Any, tamper: Tamper) -> None:
    name = LAYER.format(3) + "self_attn.k_proj.weight"
    bundle = tamper(half_portable.bundle, name, lambda values: np.roll(values, 16, axis=1))

    assert failed_stages(parity(half_portable.checkpoint, bundle, "sampled")) == ["segment_1"]
