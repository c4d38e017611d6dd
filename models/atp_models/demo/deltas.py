"""What training adds to the demo's pretrained parts, in one safetensors file of a few MB.

    projector.linear_{1,2}.{weight,bias}   float16, LLaVA's projector
    lora.{layer}.{projection}.{A,B}        int8, A [rank, in] and B [out, rank]
    lora.{layer}.{projection}.scale        float32 [rank]
    atp.points.{i}.…                       float32, as in `atp_modules.safetensors`

A projection is `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj` or `down_proj`;
its merged weight is W + lora_scale * B diag(scale) A. Eight bits lose less than the ranks for which
there would be no room in sixteen. The metadata holds one entry, "deltas", a `Header` as JSON:
safetensors writes several in random order, and equal training should give equal files.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, float16, float32, int8

from atp_models.atp import AtpModules
from atp_models.demo.recipe import Training
from atp_models.pruning_config import PruningConfig
from atp_runtime.errors import AtpError, CheckFailedError, InputError
from atp_runtime.schema import from_json, to_json

PROJECTOR = ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
_METADATA_ENTRY = "deltas"
_TINY = 1e-30
_LARGEST = 127  # of int8, on both sides of 0
_FACTORS = {"A": int8, "B": int8, "scale": float32}
_FIX = "install atp-llava again; if you trained the deltas yourself, train them for these parts"


@dataclass(frozen=True)
class LowRank:
    """The update of one weight, B A before scaling.

    Attributes:
        a: [rank, in].
        b: [out, rank].
    """

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Deltas:
    """Everything that was trained.

    Attributes:
        projector: Parameters named as in Transformers' `LlavaMultiModalProjector`.
        lora: Updates of the decoder's projections, by layer and name: (3, "q_proj").
        lora_scale: Factor of B A, alpha / rank.
        modules: Of all pruning points; their `config` belongs to the checkpoint.
    """

    projector: Mapping[str, Tensor]
    lora: Mapping[tuple[int, str], LowRank]
    lora_scale: float
    modules: AtpModules


@dataclass(frozen=True)
class Header:
    """What the file's metadata tells.

    Attributes:
        lora_scale: Factor of B A, alpha / rank.
        pruning_config: Where the modules prune, and how.
        training: How the deltas were trained.
    """

    lora_scale: float
    pruning_config: PruningConfig
    training: Training


def merge_lora(state: Mapping[str, Tensor], deltas: Deltas) -> dict[str, Tensor]:
    """The decoder's parameters with every update added: W + lora_scale * B A, in float32.

    Args:
        state: float32, named as in Transformers' `LlamaForCausalLM`.
        deltas: May lack any projection, which then stays as it is.

    Raises:
        CheckFailedError: An update fits no weight of the decoder.
    """
    merged = dict(state)
    for (layer, projection), update in deltas.lora.items():
        block = "self_attn" if projection in ATTENTION else "mlp"
        name = f"model.layers.{layer}.{block}.{projection}.weight"
        shape = [update.b.shape[0], update.a.shape[1]]
        if name not in merged:
            raise refused("the trained deltas", f"they update {name}, which the decoder has not")
        if shape != list(merged[name].shape):
            found = list(merged[name].shape)
            raise refused("the trained deltas", f"they are {shape} for {name}, which is {found}")
        product = update.b.float() @ update.a.float()
        merged[name] = merged[name] + deltas.lora_scale * product
    return merged


def save_deltas(file: Path, deltas: Deltas, training: Training) -> None:
    """Write the file; it appears whole, and only if `read_deltas` accepts it.

    Raises:
        InputError: A value is not finite, or not in float16; or a tensor is missing or misshapen.
    """
    header = Header(deltas.lora_scale, deltas.modules.config, training)
    entry = json.dumps(to_json(header), sort_keys=True)
    partial = file.with_name(f".{file.name}.partial")
    try:
        # Not save_file: its files are readable to their owner alone.
        partial.write_bytes(save(_encoded(deltas), metadata={_METADATA_ENTRY: entry}))
        read_deltas(partial)
        partial.replace(file)
    except CheckFailedError as error:
        raise InputError(
            f"{file} was not written: {error.what}",
            why="what was trained could not be read back from it",
            fix="look at what the training made; float16 holds values up to 65,504",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def read_deltas(file: Path) -> tuple[Deltas, Training]:
    """Read the file, and how it came to be; tensors become float32.

    Raises:
        CheckFailedError: It is damaged, or not such a file; the message names what is wrong.
    """
    try:
        with safe_open(file, framework="pt") as reader:
            entry = (reader.metadata() or {}).get(_METADATA_ENTRY)
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise refused(str(file), f"it cannot be read ({error})") from error
    header = _header(file, entry)
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        expected = _FACTORS.get(name.rpartition(".")[2], float32) if group == "lora" else float16
        expected = float32 if group == "atp" else expected
        if tensor.dtype != expected or not tensor.isfinite().all():
            raise refused(str(file), f"tensor {name!r} is not finite {expected}")
        groups[group][rest] = tensor.float()
    if set(groups) != {"projector", "lora", "atp"} or set(groups["projector"]) != set(PROJECTOR):
        raise refused(str(file), "it holds not just a projector, LoRA and pruning modules")
    deltas = Deltas(
        projector=groups["projector"],
        lora=_paired(file, groups["lora"]),
        lora_scale=header.lora_scale,
        modules=_modules(file, header.pruning_config, groups["atp"]),
    )
    return deltas, header.training


def refused(source: str, problem: str) -> CheckFailedError:
    """The error for deltas that cannot be used."""
    return CheckFailedError(
        f"{source} cannot be used: {problem}",
        why="what was trained does not fit the pretrained parts",
        fix=_FIX,
    )


def _encoded(deltas: Deltas) -> dict[str, Tensor]:
    halves = {f"projector.{name}": value for name, value in deltas.projector.items()}
    tensors = {name: value.detach().cpu().to(float16) for name, value in halves.items()}
    for (layer, projection), update in deltas.lora.items():
        for name, value in _rounded(update).items():
            tensors[f"lora.{layer}.{projection}.{name}"] = value.detach().cpu()
    for name, value in deltas.modules.state_dict().items():
        tensors[f"atp.{name}"] = value.detach().cpu().float()
    return {name: value.contiguous() for name, value in tensors.items()}


def _rounded(update: LowRank) -> dict[str, Tensor]:
    """The factors as whole numbers, each rank by a scale of its own; "scale" is their product."""
    a, b = update.a.float(), update.b.float()
    scale_a, scale_b = (value.abs().amax(at) / _LARGEST for value, at in ((a, 1), (b, 0)))
    return {
        "A": (a / scale_a.clamp_min(_TINY).unsqueeze(1)).round().to(int8),
        "B": (b / scale_b.clamp_min(_TINY)).round().to(int8),
        "scale": scale_a * scale_b,
    }


def _header(file: Path, entry: str | None) -> Header:
    try:
        value = json.loads(entry or "")
        return from_json(Header, value, source=str(file), fix=_FIX)
    except (ValueError, AtpError) as error:
        raise refused(str(file), f"its metadata is not that of trained deltas ({error})") from error


def _paired(file: Path, tensors: Mapping[str, Tensor]) -> dict[tuple[int, str], LowRank]:
    factors: dict[tuple[int, str], dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        factors[_projection(file, name)][name.rpartition(".")[2]] = tensor
    pairs = {}
    for (layer, projection), pair in sorted(factors.items()):
        a, b, scale = (pair.get(name) for name in _FACTORS)
        if a is None or b is None or scale is None or not a.ndim == b.ndim == scale.ndim + 1 == 2:
            raise refused(str(file), f"lora.{layer}.{projection} is not two factors and a scale")
        if not len(a) == b.shape[1] == len(scale):
            raise refused(str(file), f"lora.{layer}.{projection} is not of one rank")
        pairs[layer, projection] = LowRank(scale.unsqueeze(1) * a, b)
    return pairs


def _projection(file: Path, name: str) -> tuple[int, str]:
    """Layer and projection of a tensor such as "3.q_proj.A"."""
    parts = name.split(".")
    if len(parts) == 3 and parts[0].isdecimal() and parts[2] in _FACTORS:
        layer, projection, _ = parts
        if projection in ATTENTION + MLP:
            return int(layer), projection
    raise refused(str(file), f"tensor 'lora.{name}' is unknown")


def _modules(file: Path, config: PruningConfig, tensors: Mapping[str, Tensor]) -> AtpModules:
    modules = AtpModules(config)
    try:
        modules.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise refused(str(file), f"its pruning modules are not whole ({error})") from error
    return modules
