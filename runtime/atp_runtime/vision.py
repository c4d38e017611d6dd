"""From photos to what the decoder gets of them: preprocessing and the vision stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from atp_runtime.backends.base import Backend
from atp_runtime.bundle import Bundle
from atp_runtime.errors import InputError
from atp_runtime.image_tokens import ImageTokens
from atp_runtime.images import load_image
from atp_runtime.preprocess import ImageProcessor, ImageView, PreprocessedImage
from atp_runtime.text_files import read_json_if_present
from atp_runtime.text_mean import TextMean
from atp_runtime.vision_stages import VisionStages


@dataclass(frozen=True, eq=False)
class Photo:
    """An image of a conversation, ready for the vision stage and for being drawn.

    Attributes:
        image: Upright RGB original.
        view: What of it the model sees.
        pixel_values: float32 [3, height, width].
    """

    image: Image.Image
    view: ImageView
    pixel_values: npt.NDArray[np.float32]


class VisionEncoder:
    """The bundle's image processor and vision stages.

    Args:
        bundle: An opened bundle.
        backend: What runs the stages.
        text_mean: What questions are about; None is nothing.

    Raises:
        InputError: The processor's file is missing or of an unknown kind, a graph cannot be
            loaded, or the rule behind the tower cannot be used.
        MachineError: Memory does not suffice.
    """

    def __init__(self, bundle: Bundle, backend: Backend, text_mean: TextMean | None = None) -> None:
        manifest = bundle.manifest
        self._model = manifest.vision
        file = image_processor_file(bundle.path(manifest.processor))
        self._processor = ImageProcessor.from_file(file)
        self._stages = VisionStages(bundle, backend)
        self._text_mean = text_mean

    def close(self) -> None:
        """Gives the stages back."""
        self._stages.close()

    def read(self, source: str | Path | Image.Image) -> Photo:
        """Loads and preprocesses one image.

        Raises:
            InputError: It cannot be read, or does not come out in the size the graph takes.
            MachineError: Memory does not hold it.
        """
        image = load_image(source)
        processed = self._processor(image)
        self._check_size(processed)
        return Photo(image, processed.view, processed.pixel_values)

    @property
    def asks_text(self) -> bool:
        """Whether what the decoder gets of a photo depends on the question."""
        return self._stages.asks_text

    def encode(self, photo: Photo, question: str = "") -> ImageTokens:
        """What the decoder gets of a photo.

        Args:
            photo: The photo.
            question: What is asked about it, for a tower that `asks_text`.

        Raises:
            CheckFailedError: What a rule behind the tower decides by is not finite.
        """
        text = self._text_mean.of(question) if self.asks_text and self._text_mean else None
        return self._stages.tokens(photo.pixel_values, text)

    def _check_size(self, processed: PreprocessedImage) -> None:
        found, wanted = processed.pixel_values.shape[1:], self._model.image_size
        if found != wanted:
            raise InputError(
                f"the image processor delivers {found[1]} x {found[0]} pixels",
                why=f"the bundle's vision graph takes {wanted[1]} x {wanted[0]}, and the bundle's "
                "image processor neither crops nor pads every photo to that.",
                fix="crop the photo to that shape; if no photo works, export the bundle again.",
            )


def image_processor_file(directory: Path) -> Path:
    """Where Transformers 5 finds the image processor: nested in the newer file, if it is there.

    Args:
        directory: Of a checkpoint, or a bundle's copy of its processor files.

    Raises:
        InputError: It is in neither file, or the newer one is damaged.
    """
    nested, own = directory / "processor_config.json", directory / "preprocessor_config.json"
    if "image_processor" in read_json_if_present(nested):
        return nested
    if own.is_file():
        return own
    raise InputError(
        f"{directory}: no {own.name}",
        why="without it nobody knows how photos are resized and normalised.",
        fix="copy it into the checkpoint from where the weights came from, and export that again.",
    )
