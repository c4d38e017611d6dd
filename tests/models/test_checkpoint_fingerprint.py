"""The fingerprint tells checkpoints apart."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.models.checkpoint_files import rewrite, to_bin, to_shards

from atp_models.checkpoint import Checkpoint


def test_fingerprint_is_the_same_for_a_copy(pristine: Path, directory: Path) -> None:
    assert Checkpoint.open(directory).fingerprint() == Checkpoint.open(pristine).fingerprint()


def with_another_config(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"note": "mine"}))


def with_one_tensor_scaled(directory: Path) -> None:
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    rewrite(directory, lambda stored: stored | {name: 2 * stored[name]})


def with_another_dtype(directory: Path) -> None:
    rewrite(directory, lambda stored: {name: value.half() for name, value in stored.items()})


def with_another_shape(directory: Path) -> None:
    name = "language_model.lm_head.weight"
    rewrite(directory, lambda stored: stored | {name: stored[name].view(64, 512)})


def with_two_tensors_swapped(directory: Path) -> None:
    one, other = (f"language_model.model.layers.{n}.mlp.up_proj.weight" for n in (0, 1))
    rewrite(directory, lambda stored: stored | {one: stored[other], other: stored[one]})


@pytest.mark.parametrize(
    "change",
    [
        with_another_config,
        with_one_tensor_scaled,
        with_another_dtype,
        with_another_shape,
        with_two_tensors_swapped,
        to_bin,
        to_shards,
    ],
)
def test_fingerprint_differs_when_the_checkpoint_differs(
    change: Callable[[Path], object], pristine: Path, directory: Path
) -> None:
    change(directory)

    assert Checkpoint.open(directory).fingerprint() != Checkpoint.open(pristine).fingerprint()
