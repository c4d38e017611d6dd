"""Small models of random weights that differ in one thing; made once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.workbench import WORK

_HEAD = 64


@dataclass(frozen=True)
class Model:
    """A LLaMA decoder behind a tiny tower.

    Attributes:
        layers: Of the decoder.
        hidden: Channels of its hidden states.
    """

    layers: int = 8
    hidden: int = 512

    @property
    def name(self) -> str:
        """Of its files."""
        return f"scaling-{self.layers}x{self.hidden}"


BASE = Model()


@dataclass(frozen=True)
class Cut:
    """Where a decoder is cut: into equal segments, at a pruning point each.

    Attributes:
        segments: How many.
    """

    segments: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.segments}-segments"


DENSE, PRUNED = Cut(1), Cut(2)


def bundle_of(model: Model, cut: Cut) -> Path:
    """An FP32 bundle of the model, exported unless it is there."""
    path = WORK / f"bundle-{model.name}-{cut.name}"
    if not path.is_dir():
        command = [sys.executable, "-m", "atp_export.cli", str(_checkpoint(model)), str(path)]
        options = ["--parity", "off", "--quiet", "--precision", "fp32", *_cutting(model, cut)]
        subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    return path


def _cutting(model: Model, cut: Cut) -> list[str]:
    if cut.segments == 1:
        return ["--dense"]
    points = [number * model.layers // cut.segments for number in range(1, cut.segments)]
    return ["--prune-at", ",".join(map(str, points))]


def _checkpoint(model: Model) -> Path:
    import torch  # noqa: PLC0415 - slow, as are the next two

    from atp_models.random_checkpoint import write_random_checkpoint  # noqa: PLC0415
    from atp_models.random_configs import tiny_config  # noqa: PLC0415

    path = WORK / f"checkpoint-{model.name}"
    if not (path / "config.json").is_file():
        config = tiny_config(layers=model.layers, image_size=192)
        text = config.text_config
        text.hidden_size, text.intermediate_size = model.hidden, 4 * model.hidden
        text.num_attention_heads = text.num_key_value_heads = model.hidden // _HEAD
        text.head_dim = _HEAD
        write_random_checkpoint(path, config, dtype=torch.float16)
    return path
