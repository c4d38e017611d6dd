"""One name per weight, whichever layout of LLaVA checkpoint it was stored in.

The canonical name is the key in the state dict of Transformers 5's
`LlavaForConditionalGeneration`. Published checkpoints carry three generations of names:

- before Transformers 4.52, and on the model hub to this day:
  `language_model.model.layers…`, `vision_tower.vision_model.encoder…`,
- the same without `vision_model` (what Transformers 5 itself saves),
- the state dict's own: `model.language_model.layers…`, `model.vision_tower.encoder…`.
"""

from __future__ import annotations

from dataclasses import dataclass

_LANGUAGE = "model.language_model."
_VISION = "model.vision_tower."

# Transformers 5.23 renamed these parts of DINOv2's layers; older files hold the left side.
_DINOV2_RENAMES = (
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
    (".mlp.weights_out.", ".mlp.down_proj."),
)
_DINOV2_FUSED = ".mlp.weights_in."
_DINOV2_HALVES = (".mlp.gate_proj.", ".mlp.up_proj.")


@dataclass(frozen=True)
class Part:
    """Which piece of a stored tensor a canonical tensor is.

    Attributes:
        name: Canonical name.
        index: Which of `count` equal pieces along the first axis.
        count: Number of pieces; 1 where stored and canonical tensor are the same.
    """

    name: str
    index: int = 0
    count: int = 1


def canonical_parts(stored: str) -> tuple[Part, ...]:
    """The canonical tensors that a stored tensor holds.

    Nearly always one. DINOv2 giant's older files fuse the gate and up projections of the
    SwiGLU feed-forward, which are two tensors now.

    Args:
        stored: A name as found in a weight file.

    Returns:
        One part, or two halves in storage order. A name that belongs to no known layout
        comes back unchanged.
    """
    name = _with_current_prefix(stored)
    if not name.startswith(_VISION):
        return (Part(name),)
    for old, new in _DINOV2_RENAMES:
        name = name.replace(old, new)
    if _DINOV2_FUSED not in name:
        return (Part(name),)
    return tuple(
        Part(name.replace(_DINOV2_FUSED, half), index, len(_DINOV2_HALVES))
        for index, half in enumerate(_DINOV2_HALVES)
    )


def hub_name(canonical: str, *, vision_family: str) -> str:
    """The name that checkpoints on the model hub use for a canonical tensor.

    Args:
        canonical: A key of Transformers 5's state dict.
        vision_family: "clip", "siglip" or "dinov2"; the first two nest under `vision_model`.

    Returns:
        A name that Transformers 4 and 5 both load.
    """
    if canonical.startswith("lm_head."):
        return "language_model." + canonical
    if canonical.startswith(_LANGUAGE):
        return "language_model.model." + canonical.removeprefix(_LANGUAGE)
    if canonical.startswith(_VISION) and vision_family != "dinov2":
        return "vision_tower.vision_model." + canonical.removeprefix(_VISION)
    return canonical.removeprefix("model.")


def _with_current_prefix(stored: str) -> str:
    if stored.startswith("lm_head."):
        return stored
    bare = stored.removeprefix("model.")
    if bare.startswith("language_model.lm_head."):
        return bare.removeprefix("language_model.")
    if bare.startswith("language_model."):
        inner = bare.removeprefix("language_model.").removeprefix("model.")
        return _LANGUAGE + inner
    if bare.startswith("vision_tower."):
        inner = bare.removeprefix("vision_tower.").removeprefix("vision_model.")
        return _VISION + inner
    if bare.startswith(("multi_modal_projector.", "quecc.")):
        return "model." + bare
    return stored
