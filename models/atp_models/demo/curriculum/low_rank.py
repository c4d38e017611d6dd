"""What training changed, as few numbers as the repository can carry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from atp_models.atp import FILE_NAME, AtpModules
from atp_models.demo.deltas import ATTENTION, MLP, PROJECTOR, Deltas, LowRank
from atp_models.demo.recipe import WEIGHTS
from atp_models.pruning_config import read_pruning_config
from atp_models.training.checkpoint_writer import copy_checkpoint, staged
from atp_models.weight_files import map_tensors
from atp_runtime.errors import InputError


@dataclass(frozen=True)
class Reduced:
    """Deltas of a lower rank than what they stand for.

    Attributes:
        deltas: The deltas.
        kept: Share of the squared change that they keep, over all projections.
    """

    deltas: Deltas
    kept: float


def low_rank_deltas(
    base: Path, trained: Path, *, rank: int, report: Callable[[str], None]
) -> Reduced:
    """The difference of two demo checkpoints, its decoder part by truncated SVD.

    Several stages of LoRA add up to a change of their ranks' sum; the best approximation of a
    lower rank is the truncated SVD (Eckart and Young).

    Args:
        base: The untrained checkpoint.
        trained: What became of it; only projections, projector and modules may differ.
        rank: Of each update.
        report: Called with a line of text.

    Raises:
        InputError: Another tensor differs, or one is missing.
    """
    before, after = ({**map_tensors(path / WEIGHTS)} for path in (base, trained))
    lora: dict[tuple[int, str], LowRank] = {}
    kept = total = 0.0
    report(f"reducing the decoder's change to rank {rank}")
    for name in sorted(before):
        if name not in after or name.startswith("multi_modal_projector."):
            continue
        change = after[name].float() - before[name].float()
        if not change.any():
            continue
        place = _projection(name)
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        root = values[:rank].sqrt()
        lora[place] = LowRank(a=root[:, None] * right[:rank], b=left[:, :rank] * root)
        kept += float(values[:rank].square().sum())
        total += float(values.square().sum())
    projector = {name: after[f"multi_modal_projector.{name}"] for name in PROJECTOR}
    config = read_pruning_config(trained)
    if config is None:
        raise InputError(
            f"{trained} has no pruning_config.json",
            why="the deltas hold pruning modules.",
            fix="train them with atp-train.",
        )
    modules = AtpModules.load(trained / FILE_NAME, config)
    deltas = Deltas(projector, lora, lora_scale=1.0, modules=modules)
    return Reduced(deltas, kept / total if total else 1.0)


def cut_to_rank(
    base: Path, trained: Path, out: Path, *, rank: int, report: Callable[[str], None]
) -> Path:
    """Writes `trained` with its decoder's change cut, or leaves `out` if it is there.

    A last stage of LoRA behind the cut makes good what it cost, and adds no more than its own rank:
    small late changes, which the cut takes for the least of all, are those that answers hang on.

    Args:
        base: The untrained checkpoint.
        trained: See `low_rank_deltas`.
        out: The directory to make.
        rank: Of each change.
        report: Called with a line of text.
    """
    if out.is_dir():
        return out
    before = {**map_tensors(base / WEIGHTS)}
    update = low_rank_deltas(base, trained, rank=rank, report=report).deltas.lora
    changed = {}
    for (layer, projection), low in update.items():
        block = "self_attn" if projection in ATTENTION else "mlp"
        name = f"layers.{layer}.{block}.{projection}.weight"
        weight = before[f"language_model.model.{name}"].float()
        changed[f"model.language_model.{name}"] = weight + low.b @ low.a
    with staged(out) as staging:
        copy_checkpoint(trained, staging, changed)
    return out


def _projection(name: str) -> tuple[int, str]:
    """Layer and projection of a weight."""
    *_, layer, block, projection, last = name.split(".")
    known = {"self_attn": ATTENTION, "mlp": MLP}.get(block, ())
    if last != "weight" or projection not in known or not layer.isdigit():
        raise InputError(
            f"{name} was trained as well",
            why="the deltas hold changes of the decoder's projections, and the projector.",
            fix="train with --mode lora.",
        )
    return int(layer), projection
