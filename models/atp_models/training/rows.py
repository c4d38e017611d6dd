"""Tokenised conversations as the decoder is trained on them, one by one and as a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

UNSUPERVISED = -100
"""The target of a token whose successor is not learnt, as in Transformers."""

TEXT = -1
"""The feature number of a token that is no image feature."""

PREFIX = 0
"""The block that every token of a row sees; see `atp_models.training.packing`."""

PADDING = -1
"""The block of what only fills up a row."""

_FILL = {
    "ids": 0,
    "positions": 0,
    "features": TEXT,
    "blocks": PADDING,
    "targets": UNSUPERVISED,
    "asking": False,
}


@dataclass(frozen=True, eq=False)
class TokenRow:
    """One row of a batch: a conversation, or several behind the same images.

    Attributes:
        ids: int64 [tokens], a placeholder for each image feature.
        positions: int64 [tokens], of the rotary embedding.
        features: int64 [tokens], which of the row's image features a token is, counted through
            its images; -1 for text.
        blocks: int64 [tokens], see `atp_models.training.packing`; 0 unless packed.
        targets: int64 [tokens], the id that is to follow, -100 where that is not learnt.
        asking: bool [tokens], the text after the last image and before the answer. Its attention
            scores the visual tokens, as at inference, where the answer is not there yet.
        images: Images of the row.
    """

    ids: Tensor
    positions: Tensor
    features: Tensor
    blocks: Tensor
    targets: Tensor
    asking: Tensor
    images: int

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, indices: Tensor) -> TokenRow:
        """The tokens at `indices` (int64 [kept], rising), everything else as it was."""
        kept = {name: getattr(self, name)[indices] for name in _FILL}
        return dataclasses.replace(self, **kept)


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Rows, filled up on the right to the longest.

    Attributes:
        ids: int64 [batch, tokens].
        positions: int64 [batch, tokens].
        features: int64 [batch, tokens], counted through the images of the batch; -1 for text.
        blocks: int64 [batch, tokens], -1 for what is filled up.
        targets: int64 [batch, tokens].
        asking: bool [batch, tokens].
        images: int64 [batch], of each row.
        pixel_values: [images, 3, height, width], or None.
        tower_features: [images, features, width], what the vision tower made of them before the
            projector; or None. Of the two, batches with images have one.
        strides: int64 [batch], rows and columns of the patch grid between two visual tokens of
            an image; None is 1 everywhere.
    """

    ids: Tensor
    positions: Tensor
    features: Tensor
    blocks: Tensor
    targets: Tensor
    asking: Tensor
    images: Tensor
    pixel_values: Tensor | None = None
    tower_features: Tensor | None = None
    strides: Tensor | None = None

    @property
    def visual(self) -> Tensor:
        """Which tokens are image features, bool [batch, tokens]."""
        return self.features >= 0

    @property
    def packed(self) -> bool:
        """Whether rows hold blocks that do not see each other."""
        return bool((self.blocks > PREFIX).any())

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, those that are None left out."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    def to(self, device: torch.device) -> TokenBatch:
        """The same on a device."""
        moved = {name: value.to(device) for name, value in self.tensors().items()}
        return dataclasses.replace(self, **moved)

    def only(self, keep: Tensor) -> tuple[TokenBatch, Tensor, Tensor]:
        """The tokens of bool [batch, tokens], rows filled up to the longest.

        Returns:
            What is left; the place where each of its tokens was, int64 [batch, kept]; and bool
            [batch, kept], False for what only fills up a row.
        """
        count = keep.sum(1, keepdim=True)
        longest = int(count.max())
        places = keep.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
        valid = torch.arange(longest, device=keep.device) < count
        picked = {
            name: getattr(self, name).gather(1, places).masked_fill(~valid, fill)
            for name, fill in _FILL.items()
        }
        return dataclasses.replace(self, **picked), places, valid


def make_row(
    ids: Sequence[int], supervised: Sequence[bool], *, image_token_id: int, image_features: int
) -> TokenRow:
    """A row from a tokenised conversation.

    Args:
        ids: Token ids [tokens], `image_features` placeholders for every image.
        supervised: Whether each token is to be learnt [tokens].
        image_token_id: The placeholder.
        image_features: Features per image.

    Raises:
        ValueError: The placeholders are no whole number of images.
    """
    tokens, learnt = torch.tensor(ids), torch.tensor(supervised, dtype=torch.bool)
    visual = tokens == image_token_id
    images, rest = divmod(int(visual.sum()), image_features)
    if rest:
        raise ValueError(f"{int(visual.sum())} placeholders, an image has {image_features}")
    targets = torch.full_like(tokens, UNSUPERVISED)
    targets[:-1] = torch.where(learnt[1:], tokens[1:], UNSUPERVISED)
    return TokenRow(
        ids=tokens,
        positions=torch.arange(len(tokens)),
        features=torch.where(visual, visual.cumsum(0) - 1, TEXT),
        blocks=torch.full_like(tokens, PREFIX),
        targets=targets,
        asking=_asking(visual, learnt),
        images=images,
    )


def collate(rows: Sequence[TokenRow], image_features: int) -> dict[str, Tensor]:
    """The tensors of a `TokenBatch` without its images; these are to be given in the rows' order.

    Args:
        rows: At least one.
        image_features: Features per image.
    """
    longest = max(len(row) for row in rows)
    images = torch.tensor([row.images for row in rows])
    first = (images.cumsum(0) - images) * image_features
    batch = {
        name: torch.stack([_filled_up(getattr(row, name), longest, fill) for row in rows])
        for name, fill in _FILL.items()
    }
    batch["features"] = torch.where(
        batch["features"] >= 0, batch["features"] + first.unsqueeze(1), TEXT
    )
    return batch | {"images": images}


def make_batch(rows: Sequence[TokenRow], image_features: int, **images: Tensor) -> TokenBatch:
    """A batch of rows and their `pixel_values` or `tower_features`."""
    return TokenBatch(**collate(rows, image_features), **images)


def batch_from(tensors: Mapping[str, Tensor]) -> TokenBatch:
    """The batch whose `tensors()` these are; names it does not know are left out."""
    names = {field.name for field in dataclasses.fields(TokenBatch)}
    return TokenBatch(**{name: value for name, value in tensors.items() if name in names})


def _asking(visual: Tensor, supervised: Tensor) -> Tensor:
    places = torch.arange(len(visual))
    seen = int(visual.nonzero()[-1]) if bool(visual.any()) else len(visual)
    answers = (supervised & (places > seen)).nonzero()
    end = int(answers[0]) if len(answers) else len(visual)
    return (places > seen) & (places < end)


def _filled_up(values: Tensor, length: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - len(values)), value=fill)
