"""Runs samples' prompts through an open session, without answering them."""

from __future__ import annotations

from collections import OrderedDict

from atp_calibration.samples import Sample
from atp_runtime.chat import ImagePart, Message, Part, TextPart
from atp_runtime.context import Prefill
from atp_runtime.evaluation.question import ImageReference
from atp_runtime.selection import SelectTokens
from atp_runtime.session import Session
from atp_runtime.vision import Photo

_PHOTOS = 32  # a few megabytes each, with their features


class Prompts:
    """Prefills of samples; images that come again soon go through the vision stage once.

    Args:
        session: An open one.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._photos: OrderedDict[ImageReference, Photo] = OrderedDict()

    def photos(self, sample: Sample) -> list[Photo]:
        """The sample's images, read."""
        found = []
        for reference, source in zip(sample.question.images, sample.images(), strict=True):
            if reference not in self._photos:
                self._photos[reference] = self.session.model.vision.read(source)
            self._photos.move_to_end(reference)
            found.append(self._photos[reference])
        while len(self._photos) > max(_PHOTOS, len(found)):
            self._photos.popitem(last=False)
        return found

    def prefill(self, sample: Sample, select: SelectTokens) -> Prefill:
        """Runs one sample's prompt in a conversation of its own.

        Args:
            sample: What to run.
            select: Asked at every pruning point; what it raises comes through.
        """
        model, photos = self.session.model, self.photos(sample)
        parts: tuple[Part, ...] = (*(ImagePart() for _ in photos), TextPart(sample.prompt))
        draft = model.writer.draft((Message("user", parts),))
        features = [model.memory.features(photo, sample.prompt) for photo in photos]
        ids = model.writer.ids(draft, [len(image.tokens) for image in features])
        model.context.check_fits(ids, len(photos))
        model.context.restart()
        return model.context.prefill(ids, features, select, max_new_tokens=1)
