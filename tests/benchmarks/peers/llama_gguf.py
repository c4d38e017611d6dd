"""A LLaMA decoder as a GGUF file, for llama.cpp.

Written here, tensor by tensor, because the script that llama.cpp has for it is not packaged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

Array = npt.NDArray[Any]
KINDS = {
    "fp32": gguf.GGMLQuantizationType.F32,
    "fp16": gguf.GGMLQuantizationType.F16,
    "int8": gguf.GGMLQuantizationType.Q8_0,
}
_FILE_TYPES = {
    "fp32": gguf.LlamaFileType.ALL_F32,
    "fp16": gguf.LlamaFileType.MOSTLY_F16,
    "int8": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(source: Path, target: Path, precision: str) -> None:
    """Writes the file.

    Args:
        source: A LlamaForCausalLM directory.
        target: The file.
        precision: A key of `KINDS`: of the matrices; vectors are FP32.

    Raises:
        ValueError: The decoder has something that is not written here: scaled RoPE or biases.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(target, "llama")
    _add_config(writer, config)
    writer.add_file_type(_FILE_TYPES[precision])
    # Twice over the weights, so that only one tensor is in memory at a time.
    for name, load in _tensors(source):
        values = converted(name, load(), config, precision)
        kind = KINDS[precision] if values.dtype == np.uint8 else None
        writer.add_tensor_info(
            gguf_name(name), values.shape, values.dtype, values.nbytes, raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, load in _tensors(source):
        writer.write_tensor_data(converted(name, load(), config, precision))
    writer.close()


def gguf_name(name: str) -> str:
    """What a tensor of LlamaForCausalLM is called in a GGUF file.

    Raises:
        ValueError: It is none that is known here.
    """
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    part = rest.removesuffix(".weight")
    if part not in _IN_LAYER:
        raise ValueError(f"{name}: no tensor of a LLaMA without biases")
    return f"blk.{layer}.{_IN_LAYER[part]}.weight"


def interleaved(weight: Array, heads: int) -> Array:
    """Rows of a query or key projection in llama.cpp's order.

    Transformers rotates the first half of a head's channels with the second half, llama.cpp each
    even channel with the odd one behind it.

    Args:
        weight: T [heads * channels, D].
        heads: Of the projection.
    """
    rows, width = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, width)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, width))


def converted(name: str, values: Array, config: dict[str, Any], precision: str) -> Array:
    """A tensor as it is in the file; uint8 blocks where it is quantised."""
    if name.endswith("q_proj.weight"):
        values = interleaved(values, config["num_attention_heads"])
    if name.endswith("k_proj.weight"):
        values = interleaved(values, config["num_key_value_heads"])
    if values.ndim == 1:
        return values
    if precision == "fp16":
        return values.astype(np.float16)
    if precision == "int8":
        return gguf.quants.quantize(values, KINDS[precision])
    return values


def _add_config(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"RoPE of type {rope['rope_type']} is not written here")
    heads, width = config["num_attention_heads"], config["hidden_size"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config.get("head_dim") or width // heads)
    writer.add_rope_freq_base(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    writer.add_vocab_size(config["vocab_size"])
    # Prompts are token ids.
    writer.add_tokenizer_model("none")


def _tensors(source: Path) -> Iterator[tuple[str, Callable[[], Array]]]:
    """Names of the weights, and how to load each as FP32."""
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118

                def load(name: str = name) -> Array:
                    found: Array = weights.get_tensor(name).to(torch.float32).numpy()
                    return found

                yield name, load
