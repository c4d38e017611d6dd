"""Writes LLaVA checkpoints of random weights, for tests and for measuring at real sizes.

    python -m atp_models.random_checkpoint SHAPE OUT_DIR [--dtype float16] [--seed 0]

Numbers are drawn once, into a block of a few MB, and every tensor is a stretch of that block
scaled to its role: 14 GB are written at the speed of the disk within about half a GB of
memory, most of it PyTorch. The weights keep activations near unit variance at any width and
depth, so half precision does not overflow and attention is neither flat nor one-hot.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration

from atp_models.json_files import write_json
from atp_models.random_configs import SHAPES, named_config
from atp_models.random_processor import write_processor
from atp_models.tensor_names import hub_name
from atp_runtime.errors import AtpError, InputError, MachineError

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_SHARD_BYTES = 2_000_000_000
# A prime, so that no matrix repeats a row when it is longer than the block.
_BLOCK_ELEMENTS = 4_194_319
_RESIDUAL_OUTPUTS = (".o_proj.", ".down_proj.", ".out_proj.", ".fc2.", ".mlp.weights_out.")
_QUERIES_AND_KEYS = (".q_proj.", ".k_proj.")
_LEARNT_TOKENS = ("class_embedding", "cls_token", "mask_token", "probe", "position_embedding")


@dataclass(frozen=True)
class _Spread:
    """Mean and standard deviation of a tensor's random elements."""

    mean: float
    std: float


@dataclass(frozen=True)
class _Tensor:
    """A tensor to write: its name on disk, shape and spread."""

    name: str
    shape: tuple[int, ...]
    spread: _Spread

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def write_random_checkpoint(
    out_dir: Path,
    config: LlavaConfig,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    max_shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Writes a directory that Transformers loads as a LLaVA with its processor.

    Tensors are named as on the model hub. `config.json` is written last, so that an
    interrupted run leaves nothing that passes for a checkpoint.

    Args:
        out_dir: Where to; must be absent or empty.
        config: A LLaVA of a CLIP, SigLIP or DINOv2 tower and a LLaMA, whose text config names
            the ids of the special tokens (start, end, padding).
        dtype: float32, float16 or bfloat16.
        seed: Same seed, same config, same weights.
        max_shard_bytes: Weights are split into files of at most this size (or one tensor).

    Raises:
        InputError: `out_dir` is not empty.
        MachineError: The disk is full or not writable.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        if any(out_dir.iterdir()):
            raise InputError(
                f"{out_dir} is not empty",
                why="its files would be mixed with the new checkpoint's",
                fix="name another directory, or remove this one",
            )
        _write_weights(out_dir, _tensors(config), dtype, seed, max_shard_bytes)
        write_processor(out_dir, config)
        GenerationConfig.from_model_config(config).save_pretrained(out_dir)
        described = LlavaConfig.from_dict({**config.to_dict(), "dtype": _short(dtype)})
        described.save_pretrained(out_dir)
    except OSError as error:
        raise MachineError(
            f"writing {out_dir} failed ({error.strerror})",
            why="the checkpoint is incomplete",
            fix="free space or choose another disk, and remove the directory",
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m atp_models.random_checkpoint",
        description="Write a LLaVA checkpoint of random weights.",
    )
    parser.add_argument("shape", choices=sorted(SHAPES), help="which network")
    parser.add_argument("out_dir", type=Path, help="directory to write, absent or empty")
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default="float16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    try:
        write_random_checkpoint(
            options.out_dir,
            named_config(options.shape),
            dtype=getattr(torch, options.dtype),
            seed=options.seed,
        )
    except AtpError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in options.out_dir.iterdir()) / 1e9
    print(f"{options.out_dir}: {size:.2f} GB in {seconds:.1f} s, {size / seconds:.2f} GB/s")
    return 0


def _tensors(config: LlavaConfig) -> list[_Tensor]:
    with torch.device("meta"):
        state = LlavaForConditionalGeneration(config).state_dict()
    family = config.vision_config.model_type.partition("_")[0]
    return [
        _Tensor(
            hub_name(name, vision_family=family),
            tuple(value.shape),
            _spread(name, tuple(value.shape), config),
        )
        for name, value in state.items()
        if not (name == "lm_head.weight" and config.tie_word_embeddings)
    ]


def _spread(name: str, shape: tuple[int, ...], config: LlavaConfig) -> _Spread:
    if name.endswith((".bias", "_bias")):
        return _Spread(0.0, 0.02)
    if any(token in name for token in _LEARNT_TOKENS):
        return _Spread(0.0, 0.5)
    if len(shape) == 1:
        return _Spread(1.0, 0.05)
    return _Spread(0.0, _gain(name, config) / math.sqrt(math.prod(shape[1:])))


def _gain(name: str, config: LlavaConfig) -> float:
    """Standard deviation of a projection's outputs over that of its inputs."""
    if "embed_tokens" in name:
        # A tied head must not see the last token itself in the residual stream.
        return 0.3 if config.tie_word_embeddings else math.sqrt(config.text_config.hidden_size)
    if any(part in name for part in _QUERIES_AND_KEYS):
        return 1.3
    if any(part in name for part in _RESIDUAL_OUTPUTS):
        tower = "vision_tower" in name
        layers = (config.vision_config if tower else config.text_config).num_hidden_layers
        return 1 / math.sqrt(2 * layers)
    return 1.0


def _write_weights(
    out_dir: Path, tensors: Sequence[_Tensor], dtype: torch.dtype, seed: int, max_bytes: int
) -> None:
    size = min(_BLOCK_ELEMENTS, sum(tensor.elements for tensor in tensors))
    block = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    offsets = random.Random(seed)  # noqa: S311
    shards = _shards(tensors, max_bytes // dtype.itemsize)
    weight_map: dict[str, str] = {}
    scaled: dict[_Spread, torch.Tensor] = {}
    for number, held in enumerate(shards, start=1):
        file = out_dir / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        if len(shards) == 1:
            file = out_dir / "model.safetensors"
        with file.open("wb") as stream:
            stream.write(_header(held, dtype))
            for tensor in held:
                if tensor.spread not in scaled:
                    scaled[tensor.spread] = (block * tensor.spread.std + tensor.spread.mean).to(
                        dtype
                    )
                start = offsets.randrange(size)
                _write_stretch(stream, scaled[tensor.spread], start, tensor.elements)
                weight_map[tensor.name] = file.name
    if len(shards) > 1:
        total = sum(tensor.elements for tensor in tensors) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(out_dir / "model.safetensors.index.json", index)


def _shards(tensors: Sequence[_Tensor], max_elements: int) -> list[list[_Tensor]]:
    shards: list[list[_Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.elements > max_elements:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.elements
    return shards


def _header(tensors: Sequence[_Tensor], dtype: torch.dtype) -> bytes:
    """The start of a safetensors file: length, then JSON, padded to a multiple of 8 bytes.

    Written here because the library wants all of a file's tensors in memory at once.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.elements * dtype.itemsize
        entries[tensor.name] = {
            "dtype": _DTYPES[_short(dtype)],
            "shape": tensor.shape,
            "data_offsets": (offset, end),
        }
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_stretch(stream: BinaryIO, block: torch.Tensor, start: int, elements: int) -> None:
    while elements:
        piece = block[start : start + elements]
        stream.write(piece.view(torch.uint8).numpy().data)
        elements -= piece.numel()
        start = 0


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    sys.exit(main())
