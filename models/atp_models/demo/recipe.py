"""What a demo checkpoint is made of, and the card that says so inside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atp_models.demo.fetching import file_sha256
from atp_models.demo.parts import LANGUAGE_MODEL, VISION_TOWER, Part

CARD = "demo_card.json"
WEIGHTS = "model.safetensors"
DELTAS = Path(__file__).parent / "weights" / "deltas.safetensors"
# Notices go with every answer of a bundle made of the checkpoint.
UNTRAINED_NOTICE = (
    "The vision tower and the language model are pretrained, but the projector between them "
    "and the pruning modules are untrained: answers about images mean nothing yet. "
    "Text-only prompts are answered by the language model as it is."
)
TRAINED_NOTICE = (
    "This demo was trained to answer short questions about drawn scenes of emoji artwork and "
    "about easy-VQA's images. Answers to anything else, photos included, are guesses."
)


@dataclass(frozen=True)
class Training:
    """How deltas were trained.

    Attributes:
        recipe: Version of the recipe whose untrained checkpoint they were trained from.
        seed: Of the training.
        provenance: Data, commands and whatever else it takes to train them again.
    """

    recipe: int
    seed: int
    provenance: str


@dataclass(frozen=True)
class Recipe:
    """The parts of a checkpoint and the version of the steps that join them.

    Attributes:
        version: Raised whenever the steps would write something else from the same parts.
        language_model: Part with the decoder and its tokenizer, a GGUF file.
        vision_tower: Part with the tower, an ONNX file.
        deltas: File of what was trained. Without it, projector and pruning modules are
            initialised and the language model stays as it is.
    """

    version: int
    language_model: Part
    vision_tower: Part
    deltas: Path

    @property
    def parts(self) -> tuple[Part, Part]:
        """Both parts."""
        return self.language_model, self.vision_tower


DEMO = Recipe(3, language_model=LANGUAGE_MODEL, vision_tower=VISION_TOWER, deltas=DELTAS)


def write_card(recipe: Recipe, directory: Path, training: Training | None) -> None:
    """Write `demo_card.json` into a checkpoint that is otherwise complete.

    Args:
        recipe: What it was made of.
        directory: The checkpoint.
        training: Of the deltas that were merged, None if there were none.
    """
    trained = training is not None
    card = {
        "notice": TRAINED_NOTICE if trained else UNTRAINED_NOTICE,
        "trained": {
            "vision_tower": True,
            "projector": trained,
            "language_model": True,
            "atp_modules": trained,
        },
        "licence": " AND ".join(
            sorted({term for part in recipe.parts for term in part.licence.split(" AND ")})
        ),
        "parts": [asdict(part) for part in recipe.parts],
        "deltas_sha256": _deltas_sha256(recipe),
        "training": asdict(training) if training else None,
        "recipe": recipe.version,
        "files": sorted(path.name for path in directory.iterdir()),
        "weights_bytes": (directory / WEIGHTS).stat().st_size,
    }
    (directory / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def read_card(directory: Path) -> dict[str, Any] | None:
    """The card of a demo checkpoint; None if `directory` is none, or its card is unreadable."""
    try:
        card = json.loads((directory / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return card if isinstance(card, dict) else None


def is_current(recipe: Recipe, directory: Path) -> bool:
    """Whether `directory` is a whole checkpoint made by this very recipe.

    The small files may have been edited since; the weights must still have their size.
    """
    card = read_card(directory)
    if card is None or card.get("recipe") != recipe.version:
        return False
    if card.get("parts") != [asdict(part) for part in recipe.parts]:
        return False
    if card.get("deltas_sha256") != _deltas_sha256(recipe):
        return False
    names = {WEIGHTS, *card.get("files", ())}
    if not all((directory / name).is_file() for name in names):
        return False
    return bool((directory / WEIGHTS).stat().st_size == card.get("weights_bytes"))


def _deltas_sha256(recipe: Recipe) -> str | None:
    return file_sha256(recipe.deltas) if recipe.deltas.is_file() else None
