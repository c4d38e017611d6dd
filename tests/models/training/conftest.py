"""Tiny LLaVAs with ATP modules, and rows of text and images for them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from atp_models.atp import AtpModules
from atp_models.pruning_config import PruningConfig
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_models.training.packed_attention import NAME as PACKED
from atp_models.training.packing import PatchGrid
from atp_models.training.rows import TokenRow, make_row

IMAGE = 504
SIDE = 6
FEATURES = SIDE * SIDE
LAYERS = 6

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """A checkpoint of random weights, each made once; no test may change it."""
    made: dict[str, Path] = {}

    def make(**options: object) -> Path:
        chosen = {"layers": LAYERS, "image_size": 8 * SIDE, "kv_heads": 2, **options}
        name = repr(sorted(chosen.items()))
        if name not in made:
            made[name] = tmp_path_factory.mktemp("training") / "checkpoint"
            write_random_checkpoint(made[name], tiny_config(**chosen))  # type: ignore[arg-type]
        return made[name]

    return make


def load(checkpoint: Path, attention: str = PACKED) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation=attention
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Conversations about twelve pictures."""
    return write_conversations(tmp_path / "data")


@pytest.fixture
def grid() -> PatchGrid:
    return PatchGrid.of((SIDE, SIDE))


def random_modules(layers: Sequence[int], seed: int = 0, **fields: object) -> AtpModules:
    """Modules as training starts with them, moved a little, so that points and images differ."""
    config = PruningConfig(layers=tuple(layers), **fields)  # type: ignore[arg-type]
    modules = AtpModules(config).initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in modules.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return modules


def text_ids(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(6, 500, (count,), generator=generator).tolist()  # type: ignore[no-any-return]


def row_of(*parts: int, answer: int = 0, seed: int = 0) -> TokenRow:
    """A row of so many text tokens, an image, so many text tokens, an image, ...

    The last `answer` tokens are supervised.
    """
    ids: list[int] = []
    for number, count in enumerate(parts):
        ids += [IMAGE] * FEATURES if number else []
        ids += text_ids(count, 100 * seed + number)
    supervised = [place >= len(ids) - answer for place in range(len(ids))]
    return make_row(ids, supervised, image_token_id=IMAGE, image_features=FEATURES)


def pixels(images: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, 3, 8 * SIDE, 8 * SIDE, generator=generator)


def write_conversations(directory: Path, pictures: int = 12) -> Path:
    """Pictures of one colour each, and two questions about every one; gives the data file."""
    colours = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
    (directory / "pictures").mkdir(parents=True)
    records = []
    for number in range(pictures):
        name = list(colours)[number % 3]
        pixels = np.full((40, 56, 3), colours[name], np.uint8)
        pixels[: number + 4, :9] = 255
        file = f"pictures/{number}.png"
        Image.fromarray(pixels).save(directory / file)
        is_red = "yes" if name == "red" else "no"
        for kind, question, answer in (
            ("colour", "Which colour?", name),
            ("exist", "Is it red?", is_red),
        ):
            records.append(record(f"{number}-{kind}", question, answer, image=file, kind=kind))
    (directory / "data.json").write_text(json.dumps(records))
    return directory / "data.json"


def record(
    name: str, question: str, answer: str, *, image: str | None = None, kind: str = "other"
) -> dict[str, object]:
    value: dict[str, object] = {"id": name, "kind": kind}
    if image:
        value["image"] = image
        question = f"<image>\n{question}"
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {**value, "conversations": said}


class Notes:
    """Progress that remembers what it was told, and calls `heard` with it.

    Attributes:
        lines: All notes and titles of tasks.
    """

    def __init__(self, heard: Callable[[str], None] = lambda _: None) -> None:
        self.lines: list[str] = []
        self._heard = heard

    def note(self, text: str) -> None:
        self.lines.append(text)
        self._heard(text)

    @contextlib.contextmanager
    def task(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        self.lines.append(f"{title}: {total}")
        yield lambda _count: self._heard(title)
