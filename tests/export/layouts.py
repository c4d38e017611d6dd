"""Where the images of a random prompt are."""

from __future__ import annotations

import numpy as np


def image_layout(random: np.random.Generator, number: int) -> tuple[tuple[range, ...], int]:
    """None, one or two images behind two tokens of text, by turns; some are of one token.

    Returns:
        The images' tokens, and where the last of them, or the text between, ends.
    """
    sizes = [int(size) for size in random.integers(1, 40, size=number % 3)]
    sizes = [1] * len(sizes) if number % 10 == 1 else sizes
    begin, images = 2, []
    for size in sizes:
        images.append(range(begin, begin + size))
        begin += size + int(random.integers(0, 3))
    return tuple(images), begin
