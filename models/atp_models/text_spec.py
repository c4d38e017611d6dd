"""The decoder of a LLaVA, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from optimum.utils import NormalizedConfigManager
from transformers import LlavaConfig, PreTrainedConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from atp_models.checkpoint import Checkpoint
from atp_models.config_refusals import check_activation, unsupported, unusable

EMBEDDING = "model.language_model.embed_tokens.weight"
HEAD = "lm_head.weight"

_TEXT_TYPES = ("llama", "mistral")
_ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding: angle = position * inv_freq, cos and sin times a scale.

    Attributes:
        kind: "default", "linear", "dynamic", "llama3" or "yarn".
        theta: Base of the frequencies before scaling.
        inv_freq: [head_dim / 2] radians per position, scaling included.
        attention_scaling: Factor on cos and sin (other than 1 with yarn only).
    """

    kind: str
    theta: float
    inv_freq: tuple[float, ...]
    attention_scaling: float


@dataclass(frozen=True)
class TextSpec:
    """The LLaMA decoder.

    Attributes:
        layers: Decoder layers.
        hidden: Width of the residual stream.
        heads: Query heads.
        kv_heads: Key and value heads; a divisor of `heads`.
        head_dim: Width of a head; `heads * head_dim` may differ from `hidden`.
        intermediate: Width of the feed-forward.
        vocabulary: Rows of the embedding and of the LM head.
        rms_norm_eps: Added to the mean square in RMSNorm.
        activation: Transformers' name of the feed-forward's activation.
        attention_bias: Whether q, k, v and o projections have biases.
        mlp_bias: Whether the feed-forward's projections have biases.
        tied_embeddings: Whether the LM head is the embedding.
        max_positions: Longest sequence for which `rope` holds.
        rope: Rotary embedding.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    rms_norm_eps: float
    activation: str
    attention_bias: bool
    mlp_bias: bool
    tied_embeddings: bool
    max_positions: int
    rope: RopeSpec


def refuse_other_decoders(checkpoint: Checkpoint) -> None:
    """Refuses decoders and rotary embeddings that are not supported, before parsing."""
    text = checkpoint.config["text_config"]
    kind = text.get("model_type", "llama")
    if kind not in _TEXT_TYPES:
        raise unsupported(checkpoint, f"text model {kind!r}", ", ".join(map(repr, _TEXT_TYPES)))
    rope = _rope_kind(text)
    if rope not in _ROPE_KINDS:
        raise unsupported(checkpoint, f"RoPE type {rope!r}", ", ".join(map(repr, _ROPE_KINDS)))


def read_text_spec(checkpoint: Checkpoint, config: LlavaConfig) -> TextSpec:
    """Derives the decoder's numbers.

    Args:
        checkpoint: For the tensors of tied embeddings, and for naming its config in errors.
        config: The parsed config.

    Raises:
        InputError: Sizes that do not fit together or are not supported.
    """
    text = config.text_config
    if text.model_type == "mistral" and text.sliding_window is not None:
        raise unsupported(
            checkpoint,
            f"sliding-window attention (sliding_window {text.sliding_window})",
            "'mistral' with sliding_window null, which is a LLaMA",
        )
    check_activation(checkpoint, text.hidden_act, "text_config.hidden_act")
    sizes = NormalizedConfigManager.get_normalized_config_class(text.model_type)(text)
    heads, kv_heads = sizes.num_attention_heads, sizes.num_key_value_heads
    if min(sizes.num_layers, sizes.hidden_size, heads, kv_heads) < 1 or heads % kv_heads:
        raise unusable(
            checkpoint,
            f"{sizes.num_layers} layers of {heads} heads and {kv_heads} key-value heads",
            "each must be positive, and key-value heads must divide the heads",
        )
    return TextSpec(
        layers=sizes.num_layers,
        hidden=sizes.hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=text.head_dim,
        intermediate=text.intermediate_size,
        vocabulary=sizes.vocab_size,
        rms_norm_eps=text.rms_norm_eps,
        activation=text.hidden_act,
        attention_bias=getattr(text, "attention_bias", False),
        mlp_bias=getattr(text, "mlp_bias", False),
        tied_embeddings=config.tie_word_embeddings and not _stored_apart(checkpoint),
        max_positions=text.max_position_embeddings,
        rope=_rope_spec(checkpoint, text),
    )


def _rope_kind(text: Mapping[str, Any]) -> Any:
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        return rope
    return rope.get("rope_type", rope.get("type", "default"))


def _stored_apart(checkpoint: Checkpoint) -> bool:
    """Whether embedding and LM head are both stored and differ.

    Transformers then believes the files, not `tie_word_embeddings`.
    """
    if not {EMBEDDING, HEAD} <= checkpoint.tensors.keys():
        return False
    if HEAD in checkpoint.quantised:
        return True
    return not torch.equal(checkpoint.read(EMBEDDING), checkpoint.read(HEAD))


def _rope_spec(checkpoint: Checkpoint, text: PreTrainedConfig) -> RopeSpec:
    try:
        rope = LlamaRotaryEmbedding(text)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise unusable(
            checkpoint,
            f"its RoPE parameters {text.rope_parameters} are incomplete ({error!r})",
            "Transformers cannot derive the rotary frequencies",
        ) from error
    if not torch.isfinite(rope.inv_freq).all():
        raise unusable(
            checkpoint,
            f"its RoPE parameters {text.rope_parameters} give infinite frequencies",
            "positions could not be told apart",
        )
    if 2 * rope.inv_freq.numel() != text.head_dim:
        raise unsupported(
            checkpoint,
            f"RoPE over {2 * rope.inv_freq.numel()} of {text.head_dim} head dimensions",
            "RoPE over the whole of an even head_dim",
        )
    return RopeSpec(
        kind=rope.rope_type,
        theta=float(text.rope_parameters["rope_theta"]),
        inv_freq=tuple(rope.inv_freq.double().tolist()),
        attention_scaling=float(rope.attention_scaling),
    )
