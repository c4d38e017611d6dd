"""From photos to image features: preprocessing and the vision stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from atp_runtime.backends.base import Backend
from atp_runtime.bundle import Bundle
from atp_runtime.errors import InputError
from atp_runtime.images import load_image
from atp_runtime.preprocess import ImageProcessor, ImageView, PreprocessedImage


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
    """The bundle's image processor and vision stage.

    Args:
        bundle: An opened bundle.
        backend: What runs the stage.

    Raises:
        InputError: The processor's file is missing or of an unknown kind.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        manifest = bundle.manifest
        self._backend = backend
        self._model = manifest.vision
        self._processor = ImageProcessor.from_file(_processor_file(bundle))
        stage = manifest.stage("vision")
        self._stage = backend.load(bundle, stage)
        self._features = (1, manifest.vision.tokens, manifest.text.hidden)
        self._dtype = stage.outputs[0].dtype

    def close(self) -> None:
        """Gives the stage back."""
        self._stage.close()

    def read(self, source: str | Path | Image.Image) -> Photo:
        """Loads and preprocesses one image.

        Raises:
            InputError: It cannot be read, or does not come out in the size the graph takes.
        """
        image = load_image(source)
        processed = self._processor(image)
        self._check_size(processed)
        return Photo(image, processed.view, processed.pixel_values)

    def encode(self, photo: Photo) -> npt.NDArray[Any]:
        """Image features, T [tokens, hidden]."""
        pixels = self._backend.upload(photo.pixel_values[None])
        size = int(np.prod(self._features)) * np.dtype(self._dtype).itemsize
        features = self._backend.allocate(size).array(self._features, self._dtype)
        self._stage.run({"pixel_values": pixels}, {"image_features": features})
        return np.array(self._backend.download(features)[0])

    def _check_size(self, processed: PreprocessedImage) -> None:
        found, wanted = processed.pixel_values.shape[1:], self._model.image_size
        if found != wanted:
            raise InputError(
                f"the image processor delivers {found[1]} x {found[0]} pixels",
                why=f"the bundle's vision graph takes {wanted[1]} x {wanted[0]}.",
                fix="export the bundle again; its processor files do not belong to its graphs.",
            )


def _processor_file(bundle: Bundle) -> Path:
    directory = bundle.manifest.processor
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = bundle.path(f"{directory}/{name}")
        if path.is_file():
            return path
    raise InputError(
        f"{bundle.root / directory}: no preprocessor_config.json",
        why="without it nobody knows how photos are resized and normalised.",
        fix="export the bundle again with atp-export.",
    )
