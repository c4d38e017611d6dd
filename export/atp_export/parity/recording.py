"""The device runtime, run so that what every stage returned can be looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from atp_export.parity.measures import Array
from atp_export.parity.samples import Prompt, with_tokens
from atp_export.parity.tower_merging import said
from atp_runtime.backends.base import DeviceArray, LoadedStage
from atp_runtime.backends.onnxruntime import OnnxRuntimeBackend
from atp_runtime.bundle import Bundle
from atp_runtime.chunk import Chunk
from atp_runtime.decoder import SegmentedDecoder
from atp_runtime.decoder_results import PrefillResult
from atp_runtime.embedding import EmbeddingTable
from atp_runtime.image_tokens import ImageTokens
from atp_runtime.manifest import Manifest, Stage
from atp_runtime.merges import Merges
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.reduction import Given, Reduction
from atp_runtime.selection import (
    FloatArray,
    IndexArray,
    Selection,
    SelectTokens,
    VisualTokens,
)
from atp_runtime.tensor_names import PRESENT
from atp_runtime.vision_stages import VisionStages

Outputs = dict[str, Array]


class RecordingBackend(OnnxRuntimeBackend):
    """ONNX Runtime, keeping copies of outputs.

    Attributes:
        outputs: What stages returned last: new keys and values by their names, which are
            unique in a bundle, all else as "stage:name".
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: Outputs = {}

    def load(self, bundle: Bundle, stage: Stage) -> LoadedStage:
        """Loads a stage whose runs are recorded."""
        return _RecordedStage(super().load(bundle, stage), stage, self)


class _RecordedStage(LoadedStage):
    def __init__(self, loaded: LoadedStage, stage: Stage, backend: RecordingBackend) -> None:
        self._loaded = loaded
        self._stage = stage
        self._backend = backend

    def run(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        self._loaded.run(inputs, outputs)
        for name, array in outputs.items():
            unique = name if name.startswith(PRESENT) else f"{self._stage.name}:{name}"
            self._backend.outputs[unique] = np.array(self._backend.download(array))

    def close(self) -> None:
        self._loaded.close()


@dataclass(frozen=True, eq=False)
class Seen:
    """A prompt whose images the bundle's vision stages have run.

    Attributes:
        prompt: With as many placeholders for each image as it has tokens left.
        images: What the decoder gets of each.
        reductions: What the rule behind the tower left of each.
        given: What the vision stage gave for each.
    """

    prompt: Prompt
    images: tuple[ImageTokens, ...]
    reductions: tuple[Reduction, ...]
    given: tuple[Given, ...]


class BundleRun:
    """Runs prompts through a bundle as the device would.

    Args:
        bundle: Its files are taken as they are.
        capacity: Positions of the longest prompt and its decode steps.

    Raises:
        InputError: A graph cannot be loaded.
        MachineError: There is not enough memory.
    """

    def __init__(self, bundle: Bundle, capacity: int) -> None:
        self._bundle = bundle
        self._backend = RecordingBackend()
        self._table = EmbeddingTable.open(bundle)
        self._decoder = SegmentedDecoder(bundle, self._backend, capacity)
        self._select: SelectTokens = keep_all

    @property
    def manifest(self) -> Manifest:
        """The bundle's."""
        return self._bundle.manifest

    def __enter__(self) -> BundleRun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._decoder.close()

    def see(self, prompt: Prompt) -> Seen:
        """Runs the vision stages on a prompt's images, which may be none.

        Raises:
            CheckFailedError: What a rule behind the tower decides by is not finite.
        """
        if prompt.pixel_values is None:
            return Seen(prompt, (), (), ())
        stages = VisionStages(self._bundle, self._backend)
        try:
            text = said(self.manifest.text.hidden)
            given = tuple(stages.look(pixels, text) for pixels in prompt.pixel_values)
            reductions = tuple(stages.reduction(image) for image in given)
            images = tuple(map(stages.finish, given, reductions))
        finally:
            stages.close()
        placeholder = self.manifest.vision.image_token_id
        counts = [len(image) for image in images]
        return Seen(with_tokens(prompt, placeholder, counts), images, reductions, given)

    def prefill(self, seen: Seen, select: SelectTokens) -> tuple[PrefillResult, Outputs]:
        """Begins anew with a prompt.

        Args:
            seen: With or without images.
            select: Which tokens go on.

        Returns:
            What the decoder says, and the outputs of all stages, see `RecordingBackend`.
        """
        self._decoder.reset()
        self._select = select
        ids, placeholder = seen.prompt.ids, self.manifest.vision.image_token_id
        none = np.zeros((0, self.manifest.text.hidden), self.manifest.embedding.dtype)
        features = np.concatenate([none, *(image.values for image in seen.images)])
        hidden = self._table.splice(ids, features, placeholder)
        chunk = Chunk.from_ids(ids, placeholder, [image.places for image in seen.images])
        self._backend.outputs = {}
        result = self._decoder.prefill(hidden, chunk, select)
        return result, self._backend.outputs

    def follow(self, ids: IndexArray) -> tuple[FloatArray, Outputs]:
        """Goes on with text: a decode step if it is one token, else a turn.

        Returns:
            Logits [vocabulary] and the outputs of all stages, as `prefill` does.
        """
        self._backend.outputs = {}
        hidden = self._table.rows(ids)[np.newaxis]
        if len(ids) == 1:
            return self._decoder.decode(hidden), self._backend.outputs
        result = self._decoder.prefill(hidden, Chunk.text(len(ids)), self._select)
        return result.logits, self._backend.outputs


def keep_all(
    _point: PruningPoint,
    _scores_self: FloatArray,
    _scores_cross: FloatArray,
    _has_text: bool,
    visual: VisualTokens,
) -> Selection:
    """Drops nothing."""
    return Selection(np.ones(len(visual), dtype=np.bool_))


def drop_some(
    point: PruningPoint,
    _scores_self: FloatArray,
    _scores_cross: FloatArray,
    _has_text: bool,
    visual: VisualTokens,
) -> Selection:
    """Drops every fourth visual token, or merges these into the first of them."""
    stays = np.arange(len(visual)) % 4 != 0
    if not point.merges or not len(visual):
        return Selection(stays)
    merges = Merges.of(~stays[np.newaxis] / np.count_nonzero(~stays))
    stays[merges.place] = True
    return Selection(stays, merges=merges)
