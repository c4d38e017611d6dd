"""Checkpoints and bundles that benchmarks share; made once and kept in `bench-output/work`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "bench-output"
WORK = OUTPUT / "work"
BIN = Path(sys.executable).parent
NARROW = "narrow"
"""LLaVA-1.5-7B's layers, visual tokens and vocabulary, 64 wide: for what width does not change."""

WIDE = "wide"
"""Two of LLaVA-1.5-7B's layers and its visual tokens, behind a small tower and vocabulary."""

DEMO = "demo"
"""The demo's checkpoint, with real weights: a SmolLM2-135M decoder behind DINOv2."""


def checkpoint(shape: str) -> Path:
    """A checkpoint of that shape, with random FP16 weights unless it is the demo's."""
    path = WORK / f"checkpoint-{shape}"
    if (path / "config.json").is_file():
        return path
    if shape in (NARROW, WIDE):
        {NARROW: _write_narrow, WIDE: _write_wide}[shape](path)
    elif shape == DEMO:
        subprocess.run([sys.executable, "-m", "atp_models.demo", str(path)], check=True)
    else:
        command = [sys.executable, "-m", "atp_models.random_checkpoint", shape, str(path)]
        subprocess.run([*command, "--dtype", "float16"], check=True)
    return path


def bundle(shape: str, name: str, *options: str) -> Path:
    """A bundle of that shape, exported with `options` unless it is there."""
    path = WORK / f"bundle-{shape}-{name}"
    if not path.is_dir():
        command = [sys.executable, "-m", "atp_export.cli", str(checkpoint(shape)), str(path)]
        subprocess.run([*command, "--parity", "off", *options], check=True)
    return path


def _write_narrow(path: Path) -> None:
    import torch  # noqa: PLC0415 - slow, as are the next two

    from atp_models.random_checkpoint import write_random_checkpoint  # noqa: PLC0415
    from atp_models.random_configs import named_config, tiny_config  # noqa: PLC0415

    config, real = tiny_config(layers=32, image_size=192), named_config("7b")
    config.text_config.vocab_size = real.text_config.vocab_size
    write_random_checkpoint(path, config, dtype=torch.float16)


def _write_wide(path: Path) -> None:
    import torch  # noqa: PLC0415 - slow, as are the next two

    from atp_models.random_checkpoint import write_random_checkpoint  # noqa: PLC0415
    from atp_models.random_configs import named_config, tiny_config  # noqa: PLC0415

    config, real = tiny_config(layers=2, image_size=192), named_config("7b").text_config
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        setattr(config.text_config, name, getattr(real, name))
    config.text_config.head_dim = real.hidden_size // real.num_attention_heads
    write_random_checkpoint(path, config, dtype=torch.float16)
