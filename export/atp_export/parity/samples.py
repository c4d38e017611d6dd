"""What both sides are asked: prompts of fixed random tokens, and pictures made from noise.

A picture is 1/f noise behind a bright disc: like a photograph it has most of its energy in
coarse structure and an edge here and there, and it is the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from atp_models.architecture import ModelSpec

DECODE_STEPS = 8
MAX_VISUAL = 640  # tokens; beyond, a second image only takes time
_BEFORE, _BETWEEN, _AFTER, _TEXT_ONLY = 8, 4, 16, 24
_SEED = 20241


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt and the tokens that are forced after it.

    Attributes:
        name: Such as "1 image" or "text only".
        ids: int64 [N], a placeholder for each image feature.
        pixel_values: float32 [images, 3, height, width], or None.
        forced: int64, the tokens of the decode steps.
    """

    name: str
    ids: npt.NDArray[np.int64]
    pixel_values: npt.NDArray[np.float32] | None
    forced: npt.NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Positions that the prompt and the forced tokens take."""
        return len(self.ids) + len(self.forced)


def make_prompts(spec: ModelSpec, longest: int) -> tuple[Prompt, ...]:
    """The prompts of a parity run: with images if one fits, and always one without.

    Args:
        spec: The model.
        longest: Positions there are.
    """
    room = longest - DECODE_STEPS - _BEFORE - _AFTER - _BETWEEN
    images = min(2, room // spec.vision.tokens, max(1, MAX_VISUAL // spec.vision.tokens))
    text = image_prompt(spec, 0, longest)
    return (image_prompt(spec, images, longest), text) if images > 0 else (text,)


def image_prompt(spec: ModelSpec, images: int, longest: int) -> Prompt:
    """A prompt with that many images, text before, between and after them; or of text alone."""
    generator = np.random.default_rng(_SEED + images)
    steps = max(0, min(DECODE_STEPS, longest - 1))

    def text(count: int) -> npt.NDArray[np.int64]:
        drawn = generator.integers(spec.text.vocabulary - 1, size=count)
        return drawn + (drawn >= spec.image_token_id)

    if images == 0:
        ids = text(max(1, min(_TEXT_ONLY, longest - steps)))
        return Prompt("text only", ids, None, text(steps))
    places = np.full(spec.vision.tokens, spec.image_token_id)
    parts = [text(_BEFORE), places]
    for _ in range(images - 1):
        parts += [text(_BETWEEN), places]
    ids = np.concatenate([*parts, text(_AFTER)])
    pixels = np.stack([picture(spec.vision.image_size, number) for number in range(images)])
    name = "1 image" if images == 1 else f"{images} images"
    return Prompt(name, ids, pixels, text(steps))


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
