"""From a rendered conversation to the decoder's token ids."""

from __future__ import annotations

from collections.abc import Sequence

from atp_runtime.errors import InputError


def expand_images(
    ids: Sequence[int], image_token_id: int, tokens_per_image: int, images: int
) -> list[int]:
    """Replaces each image's single placeholder by one per image feature.

    Args:
        ids: Token ids of a rendered conversation.
        image_token_id: The placeholder.
        tokens_per_image: Image features per image.
        images: Images the conversation has.

    Raises:
        InputError: The text names more or fewer images than there are.
    """
    named = sum(token == image_token_id for token in ids)
    if named != images:
        raise InputError(
            f"the prompt names {named} image(s), {images} given",
            why="each placeholder in the prompt stands for one image.",
            fix="do not write the image placeholder into the question; the chat template "
            "places one per image.",
        )
    expanded: list[int] = []
    for token in ids:
        expanded += [token] * (tokens_per_image if token == image_token_id else 1)
    return expanded


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest beginning that both have."""
    for length, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return length
    return min(len(left), len(right))
