"""Reading LoRA updates out of the directory that PEFT's `save_pretrained` writes."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from torch import Tensor

from atp_models.atp import AtpModules
from atp_models.demo.deltas import ATTENTION, MLP, Deltas, LowRank, save_deltas
from atp_models.demo.recipe import Training
from atp_models.json_files import read_json
from atp_models.weight_files import map_tensors
from atp_runtime.errors import InputError

_CONFIG = "adapter_config.json"
_TENSORS = "adapter_model.safetensors"
# The adapter may be around the whole LLaVA, its language model, or the decoder inside that.
_NAME = re.compile(
    r"base_model\.model\.(?:model\.)?(?:language_model\.)?(?:model\.)?layers\.(?P<layer>\d+)\."
    r"(?:self_attn|mlp)\.(?P<projection>\w+)\.lora_(?P<factor>[AB])\.weight"
)
# Whatever else would change the meaning of A and B, at the value that leaves it alone.
_PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
}


def write_deltas(
    file: Path,
    *,
    adapter: Path,
    projector: dict[str, Tensor],
    modules: AtpModules,
    training: Training,
) -> None:
    """Write the demo's deltas from what a training run leaves.

    Args:
        file: To write, `weights/deltas.safetensors` of this package.
        adapter: Directory of a plain PEFT LoRA on the decoder's projections.
        projector: State dict of Transformers' `LlavaMultiModalProjector`.
        modules: The trained pruning modules; their `config` is written along.
        training: The recipe trained for, the seed, and what to tell of the rest.

    Raises:
        InputError: The adapter is not such a LoRA, or a value does not fit float16.
    """
    lora, scale = read_adapter(adapter)
    save_deltas(file, Deltas(projector, lora, scale, modules), training)


def read_adapter(directory: Path) -> tuple[dict[tuple[int, str], LowRank], float]:
    """The updates of a PEFT LoRA directory, and their scale alpha / rank.

    Raises:
        InputError: It is no plain LoRA of a LLaMA decoder's projections.
    """
    config = read_json(directory / _CONFIG)
    for name, plain in _PLAIN.items():
        if config.get(name, plain) not in (plain, None):
            raise _unusable(directory, f"{name} is {config[name]!r}, not {plain!r}")
    factors: dict[tuple[int, str], dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in map_tensors(directory / _TENSORS).items():
        match = _NAME.fullmatch(name)
        if match is None or match["projection"] not in ATTENTION + MLP:
            raise _unusable(directory, f"it updates {name!r}, not a projection of the decoder")
        factors[int(match["layer"]), match["projection"]][match["factor"]] = tensor
    if any(set(pair) != {"A", "B"} for pair in factors.values()):
        raise _unusable(directory, "it holds A without B, or B without A")
    lora = {key: LowRank(pair["A"], pair["B"]) for key, pair in sorted(factors.items())}
    return lora, _scale(directory, config)


def _scale(directory: Path, config: dict[str, Any]) -> float:
    alpha, rank = config.get("lora_alpha"), config.get("r")
    if not isinstance(alpha, (int, float)) or not isinstance(rank, int) or rank < 1:
        raise _unusable(directory, f"its rank is {rank!r} and its lora_alpha {alpha!r}")
    return alpha / rank


def _unusable(directory: Path, problem: str) -> InputError:
    return InputError(
        f"{directory} is no LoRA that the demo's deltas can hold: {problem}",
        why="they hold one A and one B per projection of the decoder, and one scale",
        fix=f"train with PEFT's plain LoRA on {', '.join(ATTENTION + MLP)}",
    )
