"""The files of a checkpoint, changed or stored in another way."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

StateDict = dict[str, torch.Tensor]


def rewrite(directory: Path, change: Callable[[StateDict], StateDict]) -> None:
    file = directory / "model.safetensors"
    stored = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file(change(stored), file)


def to_bin(directory: Path) -> Path:
    file = directory / "pytorch_model.bin"
    torch.save(load_file(directory / "model.safetensors"), file)
    (directory / "model.safetensors").unlink()
    return file


def to_shards(directory: Path, suffix: str = "safetensors") -> Path:
    stored = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for number, names in enumerate([sorted(stored)[::2], sorted(stored)[1::2]]):
        shard = f"{stem}-{number}.{suffix}"
        held = {name: stored[name] for name in names}
        if suffix == "safetensors":
            save_file(held, directory / shard)
        else:
            torch.save(held, directory / shard)
        weight_map |= dict.fromkeys(names, shard)
    index = directory / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index
