"""What both sides are asked: prompts of fixed random tokens, and pictures made from noise.

A picture is 1/f noise behind a bright disc: like a photograph it has most of its energy in
coarse structure and an edge here and there, and it is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from atp_models.architecture import ModelSpec

Ids = npt.NDArray[np.int64]

DECODE_STEPS = 8
TURN = 4  # tokens of a second turn, after the decode steps
MAX_VISUAL = 640  # tokens; beyond, a second image only takes time
_BEFORE, _BETWEEN, _AFTER, _TEXT_ONLY = 8, 4, 16, 24
_SEED = 20241


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt and what is forced to follow it.

    Attributes:
        name: Such as "1 image" or "text only".
        ids: int64 [N], a placeholder for each image feature.
        pixel_values: float32 [images, 3, height, width], or None.
        following: Text, each with its moment: "decode" for single tokens, then a "turn" of
            several; int64 [tokens] each.
    """

    name: str
    ids: Ids
    pixel_values: npt.NDArray[np.float32] | None
    following: tuple[tuple[str, Ids], ...]

    @property
    def tokens(self) -> int:
        """Positions that all of it takes."""
        return len(self.ids) + sum(len(ids) for _, ids in self.following)

    @property
    def moments(self) -> tuple[str, ...]:
        """What the chunks are called, the prompt's being "prefill"."""
        return ("prefill", *(moment for moment, _ in self.following))


def make_prompts(spec: ModelSpec, longest: int) -> tuple[Prompt, ...]:
    """The prompts of a parity run: with images if one fits, and always one without.

    Args:
        spec: The model.
        longest: Positions there are.
    """
    room = longest - DECODE_STEPS - TURN - _BEFORE - _AFTER - _BETWEEN
    images = min(2, room // spec.vision.tokens, max(1, MAX_VISUAL // spec.vision.tokens))
    text = image_prompt(spec, 0, longest)
    return (image_prompt(spec, images, longest), text) if images > 0 else (text,)


def image_prompt(spec: ModelSpec, images: int, longest: int) -> Prompt:
    """A prompt with that many images, text before, between and after them; or of text alone.

    Of few positions the prompt takes the first, then come decode steps, then the turn.
    """
    generator = np.random.default_rng(_SEED + images)
    if images == 0:
        ids = random_text(spec, max(1, min(_TEXT_ONLY, longest - DECODE_STEPS - TURN)), generator)
        following = _following(spec, longest - len(ids), generator)
        return Prompt("text only", ids, None, following)
    places = np.full(spec.vision.tokens, spec.image_token_id)
    parts = [random_text(spec, _BEFORE, generator), places]
    for _ in range(images - 1):
        parts += [random_text(spec, _BETWEEN, generator), places]
    ids = np.concatenate([*parts, random_text(spec, _AFTER, generator)])
    pixels = np.stack([picture(spec.vision.image_size, number) for number in range(images)])
    following = _following(spec, longest - len(ids), generator)
    return Prompt(count_images(images), ids, pixels, following)


def with_tokens(prompt: Prompt, placeholder: int, counts: Sequence[int]) -> Prompt:
    """The prompt with so many placeholders for each of its images, which are equally long."""
    places = np.flatnonzero(prompt.ids == placeholder)
    images = np.split(places, len(counts))
    dropped = [image[count:] for image, count in zip(images, counts, strict=True)]
    return replace(prompt, ids=np.delete(prompt.ids, np.concatenate(dropped)))


def random_text(spec: ModelSpec, count: int, generator: np.random.Generator) -> Ids:
    """That many token ids, none of them the image placeholder."""
    drawn = generator.integers(spec.text.vocabulary - 1, size=count)
    return drawn + (drawn >= spec.image_token_id)


def count_images(images: int) -> str:
    """Such as "1 image"."""
    return "1 image" if images == 1 else f"{images} images"


def _following(
    spec: ModelSpec, room: int, generator: np.random.Generator
) -> tuple[tuple[str, Ids], ...]:
    steps = min(DECODE_STEPS, room)
    turn = min(TURN, room - steps)
    decoded = [("decode", random_text(spec, 1, generator)) for _ in range(steps)]
    return (*decoded, ("turn", random_text(spec, turn, generator))) if turn else tuple(decoded)


def picture(size: tuple[int, int], number: int) -> npt.NDArray[np.float32]:
    """Normalised pixel values [3, height, width] of mean 0 and deviation 1."""
    height, width = size
    generator = np.random.default_rng(_SEED + number)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    spectrum = np.fft.fft2(generator.normal(size=(4, height, width)))
    noise = np.fft.ifft2(spectrum / np.maximum(frequency, 1 / max(size))).real
    # A fourth plane that all colours share: colours of a photograph go together.
    colours = noise[:3] + 2 * noise[3]
    colours /= colours.std()
    row, column = np.ogrid[:height, :width]
    distance = np.hypot(row / height - generator.random(), column / width - generator.random())
    colours[:, distance < 0.2] += generator.normal(size=(3, 1))
    colours -= colours.mean()
    normalised: npt.NDArray[np.float32] = (colours / colours.std()).astype(np.float32)
    return normalised
