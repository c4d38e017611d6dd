"""The vision tower of a LLaVA, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from optimum.utils import NormalizedVisionConfig
from transformers import LlavaConfig, PreTrainedConfig

from atp_models.checkpoint import Checkpoint
from atp_models.config_refusals import unsupported, unusable
from atp_models.image_size import processed_image_size

_FAMILIES = {
    "clip_vision_model": "clip",
    "siglip_vision_model": "siglip",
    "dinov2": "dinov2",
}


@dataclass(frozen=True)
class VisionSpec:
    """The vision tower and which of its features go to the projector.

    Attributes:
        family: "clip", "siglip" or "dinov2".
        image_size: (height, width) in pixels of what the image processor delivers.
        patch_size: Side of a patch in pixels.
        grid: (rows, columns) of patches.
        prefix_tokens: Image features before the grid's first patch (CLS with "full").
        skipped_patches: Patches missing at the grid's front: strategy "default" drops the
            first token, which is a patch on a tower without CLS.
        tokens: Image features per image: prefix_tokens + rows * columns - skipped_patches.
        feature_layer: Which hidden states are used, counted from the embeddings (0) to the
            last layer's output (`layers`), before any final norm; several are concatenated.
        select_strategy: "default" or "full".
        hidden: Width of one hidden state.
        layers: Layers of the whole tower, of which those above the feature layer are idle.
        heads: Attention heads.
    """

    family: str
    image_size: tuple[int, int]
    patch_size: int
    grid: tuple[int, int]
    prefix_tokens: int
    skipped_patches: int
    tokens: int
    feature_layer: int | tuple[int, ...]
    select_strategy: str
    hidden: int
    layers: int
    heads: int

    @property
    def has_class_token(self) -> bool:
        """Whether its first position is no patch."""
        return self.family != "siglip"

    @property
    def fixed_positions(self) -> int:
        """Positions of a tower's sequence that stand for no feature of a patch: 0 or 1."""
        return int(self.has_class_token or self.select_strategy == "default")

    @property
    def mergeable_patches(self) -> int:
        """Positions behind them."""
        return self.tokens - self.prefix_tokens

    @property
    def feature_width(self) -> int:
        """Width of what the projector gets: of all hidden states that are used."""
        layers = 1 if isinstance(self.feature_layer, int) else len(self.feature_layer)
        return layers * self.hidden


def refuse_other_towers(checkpoint: Checkpoint) -> None:
    """Refuses vision towers that are not supported, before parsing."""
    kind = checkpoint.config["vision_config"].get("model_type", "clip_vision_model")
    if kind not in _FAMILIES:
        raise unsupported(checkpoint, f"vision tower {kind!r}", ", ".join(map(repr, _FAMILIES)))


def read_vision_spec(checkpoint: Checkpoint, config: LlavaConfig) -> VisionSpec:
    """Derives the tower's numbers.

    Args:
        checkpoint: For its image-processor file, and for naming its config in errors.
        config: The parsed config.

    Raises:
        InputError: Sizes that do not fit together or are not supported.
    """
    vision = config.vision_config
    family = _FAMILIES[vision.model_type]
    image = _image_size(checkpoint, vision)
    patch = _side(checkpoint, vision, "patch_size")
    rows, columns = image[0] // patch, image[1] // patch
    leading = 0 if family == "siglip" else 1
    dropped = 1 if config.vision_feature_select_strategy == "default" else 0
    tokens = leading + rows * columns - dropped
    if min(rows, columns, tokens) < 1:
        raise unusable(
            checkpoint,
            f"images of {image[0]} x {image[1]} pixels in patches of {patch}",
            "no image feature is left",
        )
    return VisionSpec(
        family=family,
        image_size=image,
        patch_size=patch,
        grid=(rows, columns),
        prefix_tokens=max(0, leading - dropped),
        skipped_patches=max(0, dropped - leading),
        tokens=tokens,
        feature_layer=_feature_layer(checkpoint, config),
        select_strategy=config.vision_feature_select_strategy,
        hidden=vision.hidden_size,
        layers=vision.num_hidden_layers,
        heads=vision.num_attention_heads,
    )


def _image_size(checkpoint: Checkpoint, vision: PreTrainedConfig) -> tuple[int, int]:
    """What the image processor delivers, which DINOv2 alone lets differ from its training."""
    channels = NormalizedVisionConfig(vision).num_channels
    if channels != 3:
        raise unsupported(checkpoint, f"a tower for {channels} colour channels", "3, for RGB")
    side = _side(checkpoint, vision, "image_size")
    delivered = processed_image_size(checkpoint.path) or (side, side)
    if vision.model_type != "dinov2" and delivered != (side, side):
        raise unusable(
            checkpoint,
            f"the image processor delivers {delivered[0]} x {delivered[1]} pixels",
            f"the {_FAMILIES[vision.model_type]} tower takes {side} x {side} only",
            "use the preprocessor_config.json that belongs to this config.json",
        )
    return delivered


def _side(checkpoint: Checkpoint, vision: PreTrainedConfig, name: str) -> int:
    """One side of what must be square: positions are learnt on a square grid of patches."""
    size, family = getattr(vision, name), _FAMILIES[vision.model_type]
    # Of the three, only DINOv2's module takes a pair.
    sides = list(size) if isinstance(size, (list, tuple)) and family == "dinov2" else [size]
    if len(set(map(str, sides))) != 1 or not isinstance(sides[0], int) or sides[0] < 1:
        raise unsupported(checkpoint, f"vision_config.{name} {size}", "one number, for a square")
    return sides[0]


def _feature_layer(checkpoint: Checkpoint, config: LlavaConfig) -> int | tuple[int, ...]:
    states = config.vision_config.num_hidden_layers + 1
    chosen = config.vision_feature_layer
    layers = (chosen,) if isinstance(chosen, int) else tuple(chosen)
    if not layers or any(not -states <= layer < states for layer in layers):
        raise unusable(
            checkpoint,
            f"vision_feature_layer {chosen} is out of range",
            f"the tower has {states} hidden states, counted from {-states} to {states - 1}",
        )
    counted = tuple(layer % states for layer in layers)
    if isinstance(chosen, int) and counted == (0,):
        raise unusable(
            checkpoint,
            f"vision_feature_layer {chosen} is the embeddings",
            "Transformers takes that number for none, so there is nothing to compare with",
            "write it as the list [0]",
        )
    return counted[0] if isinstance(chosen, int) else counted
