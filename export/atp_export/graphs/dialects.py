"""The operators that differ between the two dialects of a bundle.

`portable` uses nothing newer than opset 18, so that TensorRT 10.3 (JetPack 6) parses it.
`native` uses the Attention, RotaryEmbedding and RMSNormalization operators that
TensorRT >= 10.15 and ONNX Runtime implement as single kernels.

Axis names: `query` new positions, `key` past and new positions, `heads` query heads,
`kv_heads` key/value heads, `head_dim` width of a head.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

FLOAT = 1  # onnx.TensorProto.FLOAT, as attributes name it
# Not -inf: a row that sees nothing would turn into NaN instead of an average.
HIDDEN = -1e9


class Dialect(Protocol):
    """What a decoder layer needs; one implementation per dialect."""

    name: str
    opset: int
    mask_dtype: torch.dtype

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMSNorm over the last axis, computed in float32, returned in the dtype of `x`."""
        ...

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """RoPE on `x` [1, query, heads, head_dim] with `cos`, `sin` [1, query, head_dim/2]."""
        ...

    def mask(self, visible: Tensor) -> Tensor:
        """What `attend` takes, from a boolean [query, key]."""
        ...

    def apply_mask(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Scores [..., query, key] with what `mask` hides pushed far below the rest."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Scaled dot-product attention, softmax in float32.

        Args:
            q: [batch, query, heads, head_dim].
            k: [batch, key, kv_heads, head_dim].
            v: Like `k`.
            mask: What `mask` returned, or None where every query sees every key.

        Returns:
            [batch, query, heads * head_dim].
        """
        ...


class Portable:
    """Decomposed operators, opset 18."""

    name = "portable"
    opset = 18
    mask_dtype = torch.float32

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return (wide * scale * weight.float()).to(x.dtype)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)

    def mask(self, visible: Tensor) -> Tensor:
        return torch.where(visible, torch.zeros(()), torch.full((), HIDDEN))

    def apply_mask(self, scores: Tensor, mask: Tensor) -> Tensor:
        return scores + mask

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        scores = grouped_scores(q, k)
        visible = scores if mask is None else self.apply_mask(scores, mask)
        weights = visible.softmax(-1).to(v.dtype)
        mixed = weights @ v.permute(0, 2, 1, 3).unsqueeze(2)
        return mixed.permute(0, 3, 1, 2, 4).flatten(2)


class Native:
    """Fused operators, opset 24."""

    name = "native"
    opset = 24
    mask_dtype = torch.bool

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed: Tensor = torch.onnx.ops.symbolic(
            "RMSNormalization",
            (x, weight),
            {"axis": -1, "epsilon": eps, "stash_type": FLOAT},
            dtype=x.dtype,
            shape=x.shape,
            version=23,
        )
        return normed

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = x.shape[2]
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        rotated = torch.onnx.ops.rotary_embedding(x.flatten(2), cos, sin, num_heads=heads)
        return torch.unflatten(rotated, 2, (heads, -1))

    def mask(self, visible: Tensor) -> Tensor:
        return visible

    def apply_mask(self, scores: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, scores, torch.full((), HIDDEN))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        # No softmax_precision: TensorRT refuses the attribute (and computes it in float32).
        mixed: Tensor = torch.onnx.ops.attention(
            q.flatten(2),
            k.flatten(2),
            v.flatten(2),
            mask,
            q_num_heads=q.shape[2],
            kv_num_heads=k.shape[2],
            scale=q.shape[3] ** -0.5,
        )[0]
        return mixed


def grouped_scores(q: Tensor, k: Tensor) -> Tensor:
    """Scores q . k / sqrt(head_dim) in float32, without copying k once per query head.

    Args:
        q: [batch, query, heads, head_dim].
        k: [batch, key, kv_heads, head_dim].

    Returns:
        [batch, kv_heads, heads / kv_heads, query, key].
    """
    kv_heads, head_dim = k.shape[2], k.shape[3]
    # The scale goes on q: in FP16 the unscaled products could overflow.
    grouped = torch.unflatten(q, 2, (kv_heads, -1)).permute(0, 2, 3, 1, 4) * head_dim**-0.5
    scores: Tensor = grouped @ k.permute(0, 2, 3, 1).unsqueeze(2)
    return scores.float()


DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (Portable(), Native())}
