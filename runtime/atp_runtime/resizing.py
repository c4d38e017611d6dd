"""The rules by which image processors choose the size an image is resized to.

Each gives the integers that Transformers computes (`transformers/image_transforms.py`), which
truncates rather than rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Extent:
    """A height and a width, in pixels."""

    height: int
    width: int


@dataclass(frozen=True)
class ExactSize:
    """Resizes to one size, whatever the shape of the image."""

    target: Extent

    def apply(self, image: Extent) -> Extent:
        """The size that `image` is resized to."""
        del image
        return self.target


@dataclass(frozen=True)
class FitWithin:
    """Resizes to the largest size of the same shape within a box, enlarging if need be."""

    box: Extent

    def apply(self, image: Extent) -> Extent:
        """The size that `image` is resized to; an edge may come out as 0."""
        scale = min(self.box.height / image.height, self.box.width / image.width)
        return Extent(int(image.height * scale), int(image.width * scale))


@dataclass(frozen=True)
class ShortestEdge:
    """Resizes to the same shape with a given length of the shorter edge.

    Attributes:
        shortest: Length of the shorter edge, in pixels.
        longest: Length that the longer edge may not exceed, or None. Where it would, the longer
            edge gets this length and the shorter one yields.
    """

    shortest: int
    longest: int | None = None

    def apply(self, image: Extent) -> Extent:
        """The size that `image` is resized to; an edge may come out as 0."""
        short, long = sorted((image.height, image.width))
        new_short, new_long = self.shortest, self.shortest * long // short
        # Compared before the truncation of the longer edge, in the order Transformers rounds in.
        if self.longest is not None and long / short * self.shortest > self.longest:
            exact_short = self.longest * short / long
            new_short = round(exact_short)
            new_long = long if new_short == short else int(exact_short * long / short)
        if image.width < image.height:
            return Extent(height=new_long, width=new_short)
        return Extent(height=new_short, width=new_long)


ResizeRule: TypeAlias = ExactSize | FitWithin | ShortestEdge
