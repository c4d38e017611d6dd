"""Every kind of structure and of model, against the simulation in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.export.exporting import parity
from tests.export.structures import ALL, HEADS, exported, misses

from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "window": ({"image_size": 48}, {"structure": {"window": 5}}),
    "no neighbours": ({}, {"structure": {"window": 1}}),
    "heads": ({}, {"structure": {"heads": [*HEADS[:3], "0000"]}}),
    "feed-forward": ({}, {"structure": {"ffn_ratio": 4}}),
    "cut": ({}, {"structure": {"cut_layer": 2}}),
    "grouped-query": (
        {"kv_heads": 2},
        {"structure": {**ALL, "heads": ["1100", "0011", "1111", "0000"]}},
    ),
    "biases": ({"attention_bias": True, "mlp_bias": True}, {"structure": ALL}),
    "class token": ({"vision": "dinov2", "strategy": "full"}, {"structure": ALL}),
    "no heads before the cut": ({}, {"structure": {"heads": ["0000"] * 4, "cut_layer": 1}}),
    "masked": ({}, {"structure": {**ALL, "mode": "masked"}}),
    "masked, biases": (
        {"kv_heads": 2, "attention_bias": True, "mlp_bias": True},
        {"structure": {"heads": ["1100", "0011", "1111", "0000"], "mode": "masked"}},
    ),
    "last row": ({}, {"policy": "fastv", "layer": 1, "structure": ALL}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_computes_what_the_simulation_does(tmp_path: Path, kind: str) -> None:
    config, pruning = KINDS[kind]
    write_random_checkpoint(tmp_path / "checkpoint", tiny_config(**config))

    job = exported(tmp_path / "checkpoint", tmp_path / "bundle", pruning)

    for mode in ("full", "sampled"):
        assert misses(parity(job, mode)) == []


@pytest.mark.slow
def test_the_native_dialect_computes_what_the_simulation_does(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "checkpoint", tiny_config())
    config = {"layers": [2], "structure": {**ALL, "heads": ["1111", "0110", "1010", "0000"]}}

    job = exported(tmp_path / "checkpoint", tmp_path / "bundle", config, dialect="native")

    assert misses(parity(job, "full")) == []


@pytest.mark.slow
def test_fp16_computes_what_the_simulation_does(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "checkpoint", tiny_config())

    job = exported(
        tmp_path / "checkpoint", tmp_path / "bundle", {"structure": ALL}, precision="fp16"
    )

    assert misses(parity(job, "full")) == []
