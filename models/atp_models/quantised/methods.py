"""Which tool quantised a checkpoint, from its config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from atp_models.json_files import read_json
from atp_models.quantised.awq import AWQ, awq_layers
from atp_models.quantised.compressed_tensors import COMPRESSED_TENSORS, compressed_tensors_layers
from atp_models.quantised.gptq import GPTQ, gptq_layers
from atp_models.quantised.modelopt import MODELOPT, modelopt_layers
from atp_models.quantised.packed_layer import Headers, PackedLayer
from atp_models.quantised.refusals import misshapen, unsupported

FIELD = "quantization_config"
MODELOPT_FILE = "hf_quant_config.json"
METHODS: Mapping[str, Callable[[object, Mapping[str, Any], Headers], Iterator[PackedLayer]]] = {
    AWQ: awq_layers,
    GPTQ: gptq_layers,
    MODELOPT: modelopt_layers,
    COMPRESSED_TENSORS: compressed_tensors_layers,
}


def find_quantised(
    directory: Path, config: Mapping[str, Any], headers: Headers
) -> dict[str, PackedLayer]:
    """The quantised layers of a checkpoint, by the names of the weights they stand for.

    Args:
        directory: The checkpoint.
        config: Its `config.json`.
        headers: Of the stored tensors, by canonical name.

    Raises:
        InputError: The quantisation is not supported, or its tensors are not as documented.
    """
    where, described = _description(directory, config)
    if described is None:
        return {}
    method = described.get("quant_method") if isinstance(described, dict) else described
    find = METHODS.get(str(method))
    if find is None:
        raise unsupported(where, str(method), ", ".join(METHODS))
    layers = {layer.weight: layer for layer in find(where, described, headers)}
    if not layers:
        raise misshapen(where, f"no layer is quantised by {method}", "its weights are not there")
    return layers


def _description(directory: Path, config: Mapping[str, Any]) -> tuple[Path, Any]:
    """What says how it is quantised, and where that stands."""
    file, other = directory / "config.json", directory / MODELOPT_FILE
    parts = [config, config.get("text_config"), config.get("vision_config")]
    found = [it[FIELD] for it in parts if isinstance(it, dict) and it.get(FIELD)]
    if any(it != found[0] for it in found):
        raise unsupported(file, "more than one method", "a single one")
    if found and not (_is_modelopt(found[0]) and "quant_algo" not in found[0]):
        return file, found[0]
    if other.is_file():
        inner = read_json(other).get("quantization")
        return other, {"quant_method": MODELOPT, **(inner if isinstance(inner, dict) else {})}
    return file, found[0] if found else None


def _is_modelopt(described: Any) -> bool:
    return isinstance(described, dict) and described.get("quant_method") == MODELOPT
