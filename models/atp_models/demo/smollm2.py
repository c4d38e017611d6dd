"""The language model of the demo: a LLaMA-layout decoder read out of a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from transformers import LlamaConfig

from atp_runtime.errors import CheckFailedError

_TOP_LEVEL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class LanguageModel:
    """A decoder ready to be stored.

    Attributes:
        config: Transformers' configuration of the decoder.
        state: Parameters in float32, named as in Transformers' `LlamaForCausalLM`; a tied
            output matrix is absent.
    """

    config: LlamaConfig
    state: dict[str, torch.Tensor]


def read_language_model(reader: gguf.GGUFReader, *, vocabulary: int) -> LanguageModel:
    """Dequantise the decoder in a GGUF file and give it room for more tokens.

    Args:
        reader: The open file.
        vocabulary: Rows wanted of the embedding table, at least as many as the file has.

    Raises:
        CheckFailedError: The file holds another architecture or a tensor LLaMA has not.
    """
    architecture = reader.fields["general.architecture"].contents()
    if architecture != "llama":
        raise _unexpected(f"its architecture is {architecture!r}, not 'llama'")
    state = dict(_dequantised(reader))
    tied = "lm_head.weight" not in state
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in state:
            state[name] = _with_rows(state[name], vocabulary)
    return LanguageModel(_config_of(reader, vocabulary=vocabulary, tied=tied), state)


def _with_rows(table: torch.Tensor, rows: int) -> torch.Tensor:
    """Append the mean row of `table`, `[tokens, width]`, until it has `rows` rows."""
    # The mean row's logit is the mean of the logits, never their maximum, so that greedy decoding
    # picks no new token. Zeros would not ensure that: all logits may be negative.
    mean = table.double().mean(dim=0, keepdim=True).float()
    return torch.cat([table, mean.expand(rows - table.shape[0], -1)])


def _config_of(reader: gguf.GGUFReader, *, vocabulary: int, tied: bool) -> LlamaConfig:
    def field(name: str) -> Any:
        return reader.fields[name].contents()

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=field("llama.attention.head_count"),
        num_key_value_heads=field("llama.attention.head_count_kv"),
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("llama.rope.freq_base")},
        tie_word_embeddings=tied,
        bos_token_id=field("tokenizer.ggml.bos_token_id"),
        eos_token_id=field("tokenizer.ggml.eos_token_id"),
        pad_token_id=field("tokenizer.ggml.padding_token_id"),
    )


def _dequantised(reader: gguf.GGUFReader) -> Iterator[tuple[str, torch.Tensor]]:
    heads = {
        "attn_q": reader.fields["llama.attention.head_count"].contents(),
        "attn_k": reader.fields["llama.attention.head_count_kv"].contents(),
    }
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        _, _, role = tensor.name.removesuffix(".weight").rpartition(".")
        if role in heads:
            values = _unpermute(values, heads[role])
        yield _llama_name(tensor.name), torch.from_numpy(np.array(values, dtype=np.float32))


def _llama_name(name: str) -> str:
    """Transformers' name of a GGUF tensor: `blk.3.attn_q.weight` is layer 3's `q_proj`."""
    match name.removesuffix(".weight").split("."):
        case [role] if role in _TOP_LEVEL:
            return f"{_TOP_LEVEL[role]}.weight"
        case ["blk", layer, role] if role in _IN_LAYER:
            return f"model.layers.{layer}.{_IN_LAYER[role]}.weight"
    raise _unexpected(f"it has a tensor {name!r}")


def _unpermute(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Reorder the rows `[heads * width, in]` of a query or key projection.

    GGUF stores each head's rows for rotary pairs (0, 1), (2, 3), ...; Transformers rotates
    the pairs (0, width/2), (1, width/2 + 1), ...
    """
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _unexpected(detail: str) -> CheckFailedError:
    return CheckFailedError(
        f"the language model's file is not the expected one: {detail}",
        why="its weights cannot be matched to a LLaMA decoder without guessing",
        fix="use the pinned package named in atp_models.demo.parts",
    )
