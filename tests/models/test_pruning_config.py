"""Where the decoder may be pruned, and what `pruning_config.json` may say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_models.pruning_config import (
    FILE_NAME,
    PruningConfig,
    check_layers,
    default_layers,
    read_pruning_config,
    write_pruning_config,
)
from atp_runtime.atp import REDUNDANCIES
from atp_runtime.errors import InputError
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.pruning_rules import Atp
from atp_runtime.selection import check_parameters


@pytest.mark.parametrize(
    ("depth", "layers"),
    [
        (32, (4, 14, 24)),  # LLaVA-1.5-7B, the paper's own
        (40, (5, 18, 30)),
        (30, (4, 13, 23)),
        (4, (1, 2, 3)),
        (3, (1, 2)),
        (2, (1,)),
        (1, ()),
    ],
)
def test_default_layers_are_the_papers_fractions_of_the_depth(
    depth: int, layers: tuple[int, ...]
) -> None:
    assert default_layers(depth) == layers


@given(depth=st.integers(2, 500))
def test_default_layers_are_always_layers_that_can_be_pruned(depth: int) -> None:
    layers = default_layers(depth)
    check_layers(layers, depth)
    assert 1 <= len(layers) <= 3
    assert list(layers) == sorted(set(layers))
    assert layers[0] >= 1
    assert layers[-1] <= depth - 1


@pytest.mark.parametrize("layers", [(), (1,), (31,), (1, 2, 31)])
def test_layers_inside_the_decoder_are_accepted(layers: tuple[int, ...]) -> None:
    check_layers(layers, 32)


@pytest.mark.parametrize(
    ("layers", "depth", "said"),
    [
        ((0, 4), 32, "no layer before it"),
        ((-1,), 32, "no layer before it"),
        ((4, 32), 32, "beyond the decoder, whose last is 31"),
        ((4, 4), 32, "named twice"),
        ((14, 4), 32, "layer 4 stands after layer 14"),
        ((1,), 1, "beyond the decoder"),
    ],
)
def test_layers_that_cannot_be_pruned_are_refused_by_number(
    layers: tuple[int, ...], depth: int, said: str
) -> None:
    with pytest.raises(InputError) as refusal:
        check_layers(layers, depth)
    assert said in refusal.value.what


def test_a_checkpoint_without_the_file_has_no_configuration(tmp_path: Path) -> None:
    assert read_pruning_config(tmp_path) is None


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    config = PruningConfig(layers=(2, 5), strides=(3,), max_keep=64, normalisation="none")
    write_pruning_config(config, tmp_path)
    assert read_pruning_config(tmp_path) == config


def test_a_file_that_names_the_layers_alone_takes_the_documented_defaults(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('{"layers": [4, 14, 24]}')
    config = read_pruning_config(tmp_path)
    assert config is not None
    assert (config.lambda_sample, config.strides, config.target_tokens) == (3.0, (2, 4, 8), 144)
    assert (config.lambda_target, config.lambda_atp) == (0.2, 0.05)
    assert config.redundancy == "both"
    assert (config.min_keep, config.max_keep, config.positions) == (0, None, "original")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": [4, 4]}, "named twice"),
        ({"layers": [0]}, "layer 0"),
        ({"layers": "4,14"}, "layers"),
        ({"layres": [4]}, "layres"),
        ({"rule": "fastv"}, "fastv"),
        ({"redundancy": "text"}, "redundancy"),
        ({"redundancy": "none", "strides": []}, "nothing decides"),
        ({"normalisation": "softmax"}, "normalisation"),
        ({"positions": "packed"}, "positions"),
        ({"self_scores": "post_softmax"}, "self_scores"),
        ({"features": "learned"}, "features"),
        ({"strides": [8, 4]}, "strides"),
        ({"lambda_sample": "3"}, "lambda_sample"),
        ({"min_keep": -1}, "min_keep"),
        ({"min_keep": 9, "max_keep": 8}, "max_keep"),
        ({"temperature_start": 0}, "temperature"),
        ({"temperature_start": 20, "temperature_end": 10}, "temperature"),
        ({"lambda_atp": -0.1}, "lambda_atp"),
        ({"schema_version": 2}, "schema version 2"),
    ],
)
def test_a_malformed_file_is_refused_by_file_and_field(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    file = tmp_path / FILE_NAME
    file.write_text(json.dumps({"layers": [4, 14, 24], **change}))
    with pytest.raises(InputError) as refusal:
        read_pruning_config(tmp_path)
    assert str(file) in refusal.value.what
    assert said in refusal.value.what


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00", '{"layers": [4], "lambda_atp": NaN}'])
def test_a_file_that_is_no_configuration_is_refused_by_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / FILE_NAME
    file.write_text(content)
    with pytest.raises(InputError) as refusal:
        read_pruning_config(tmp_path)
    assert str(file) in refusal.value.what


def test_the_device_s_rule_understands_every_parameter_and_defaults_alike() -> None:
    config = PruningConfig(layers=(4,))
    parameters = config.rule_parameters()
    assert check_parameters(PruningPoint(4, config.rule, parameters)) == Atp()
    other = replace(
        config, lambda_sample=2.5, strides=(3, 7), normalisation="none", min_keep=2, max_keep=9
    )
    assert check_parameters(PruningPoint(4, "atp", other.rule_parameters())) == Atp(
        lambda_sample=2.5, strides=(3, 7), normalisation="none", min_keep=2, max_keep=9
    )
    for redundancy in REDUNDANCIES:
        ablated = replace(config, redundancy=redundancy).rule_parameters()
        assert check_parameters(PruningPoint(4, "atp", ablated)) == Atp(redundancy=redundancy)
    assert json.loads(json.dumps(parameters)) == parameters
