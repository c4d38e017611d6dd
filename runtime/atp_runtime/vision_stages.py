"""The vision stage, the rule behind it and the projector: pixels to what the decoder gets.

A rule that decides by what the tower gives stands before the projector, which is a stage of its
own then: averages are taken of the tower's features, and what is dropped is not projected. One
that decides by projected features stands behind it. Rules run on the host.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from atp_runtime.backends.base import Backend, DeviceArray, item_size
from atp_runtime.bundle import Bundle
from atp_runtime.errors import CheckFailedError, InputError
from atp_runtime.image_tokens import ImageTokens, Places
from atp_runtime.manifest import Manifest, TensorSpec
from atp_runtime.reduction import Given, Reduction, VisionRule
from atp_runtime.schema import from_json, to_json
from atp_runtime.tensor_names import IMAGE_FEATURES, PATCH_FEATURES, TEXT_MEAN
from atp_runtime.vision_rules import vision_rule

_REBUILD = "export the bundle again with atp-export."


class VisionStages:
    """What a bundle does with the pixels of one image.

    Args:
        bundle: An opened bundle.
        backend: What runs the stages.

    Raises:
        InputError: A graph cannot be loaded, or the rule behind the tower cannot be used.
        MachineError: Memory does not suffice.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        manifest = bundle.manifest
        self._backend = backend
        self._rule = read_vision_rule(manifest)
        self._places = Places.whole(manifest.vision)
        self._vision = manifest.stage("vision")
        self._hidden = manifest.text.hidden
        self._projector = manifest.projector
        self._check_needs()
        self._loaded = [
            (stage, backend.load(bundle, stage))
            for stage in (self._vision, self._projector)
            if stage is not None
        ]

    def close(self) -> None:
        """Gives the stages back."""
        for _, loaded in self._loaded:
            loaded.close()

    @property
    def asks_text(self) -> bool:
        """Whether what is left of an image depends on the question."""
        return any(spec.name == TEXT_MEAN for spec in self._vision.inputs)

    def tokens(
        self, pixels: npt.NDArray[np.float32], text: npt.NDArray[np.float32] | None = None
    ) -> ImageTokens:
        """What the decoder gets of an image.

        Args:
            pixels: [3, height, width].
            text: See `look`.

        Raises:
            CheckFailedError: What the rule decides by is not finite.
        """
        given = self.look(pixels, text)
        return self.finish(given, self.reduction(given))

    def look(
        self, pixels: npt.NDArray[np.float32], text: npt.NDArray[np.float32] | None = None
    ) -> Given:
        """The outputs of the vision stage.

        Args:
            pixels: [3, height, width].
            text: The mean of the question's embeddings [hidden], for a stage that `asks_text`; None
                is no question.
        """
        inputs = {"pixel_values": pixels[None]}
        if self.asks_text:
            none = np.zeros(self._hidden, dtype=np.float32)
            inputs[TEXT_MEAN] = (none if text is None else text)[None]
        found = self._run(0, inputs, {"images": 1})
        return {name: array[0] for name, array in found.items()}

    def reduction(self, given: Given) -> Reduction:
        """What the bundle's rule leaves of an image; all of it without one.

        Raises:
            CheckFailedError: What the rule decides by is not finite.
        """
        if self._rule is None:
            return Reduction(np.arange(len(self._places)))
        for name in self._rule.needs:
            if not np.isfinite(given[name]).all():
                raise CheckFailedError(
                    f"vision: {name} are NaN or infinite",
                    why="which tokens of the image to keep cannot be told from them.",
                    fix="run atp-export verify on the bundle; if it is fp16, try --precision fp32.",
                )
        return self._rule.reduce(given)

    def finish(self, given: Given, reduction: Reduction) -> ImageTokens:
        """What the decoder gets of an image with these outputs, reduced like that."""
        places = self._places.reduced(reduction)
        if self._projector is None:
            return ImageTokens(reduction.of(given[IMAGE_FEATURES]), places)
        left = reduction.of(given[PATCH_FEATURES])
        inputs = {PATCH_FEATURES: left[None]}
        projected = self._run(1, inputs, {"selected": len(left)})[IMAGE_FEATURES]
        return ImageTokens(projected[0], places)

    def _run(
        self, number: int, inputs: Given, lengths: Mapping[str, int]
    ) -> dict[str, npt.NDArray[Any]]:
        stage, loaded = self._loaded[number]
        arrays = {name: self._backend.upload(array) for name, array in inputs.items()}
        outputs = {spec.name: self._allocate(spec, lengths) for spec in stage.outputs}
        loaded.run(arrays, outputs)
        return dict(zip(outputs, self._backend.download_all(*outputs.values()), strict=True))

    def _allocate(self, spec: TensorSpec, lengths: Mapping[str, int]) -> DeviceArray:
        shape = tuple(lengths[size] if isinstance(size, str) else size for size in spec.shape)
        nbytes = math.prod(shape) * item_size(spec.dtype)
        return self._backend.allocate(nbytes).array(shape, spec.dtype)

    def _check_needs(self) -> None:
        wanted = {PATCH_FEATURES if self._projector else IMAGE_FEATURES}
        wanted |= set(self._rule.needs) if self._rule else set()
        missing = sorted(wanted - {spec.name for spec in self._vision.outputs})
        if missing:
            raise InputError(
                f"the vision stage gives no {missing[0]}",
                why="what comes behind it needs that.",
                fix=_REBUILD,
            )


def read_vision_rule(manifest: Manifest) -> VisionRule | None:
    """The rule behind a bundle's tower with its parameters, if there is one.

    Raises:
        InputError: It is unknown, or a parameter is unknown, of another type or out of range.
    """
    pruning = manifest.vision.pruning
    if pruning is None:
        return None
    return from_json(
        vision_rule(pruning.rule),
        to_json(pruning.parameters),
        source=f"vision pruning, rule {pruning.rule!r}",
        fix=_REBUILD,
    )
