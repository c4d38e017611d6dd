from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atp_models.random_configs import tiny_config


@pytest.fixture(scope="session")
def two_dialects(export_bundle: Any) -> Path:
    """An FP32 bundle in both dialects: layers 0 and 1, a pruning point, layers 2 and 3."""
    made = export_bundle(tiny_config(kv_heads=2), dialect="both", prune_at=(2,))
    return Path(made.bundle)


@pytest.fixture(scope="session")
def two_dialects_fp16(export_bundle: Any) -> Path:
    """The same in FP16."""
    config = tiny_config(kv_heads=2)
    return Path(export_bundle(config, precision="fp16", dialect="both", prune_at=(2,)).bundle)


@pytest.fixture(scope="session")
def tied_bundle(export_bundle: Any) -> Path:
    """One whose head reads the token table."""
    config = tiny_config(kv_heads=2, tied=True)
    return Path(export_bundle(config, dialect="both", prune_at=(2,)).bundle)


@pytest.fixture(scope="session")
def split_head(export_bundle: Any) -> Path:
    """One whose head is in parts."""
    config = tiny_config(kv_heads=2, tied=True)
    config.text_config.vocab_size = 1024  # 256 KiB of head, more than a layer
    made = export_bundle(config, prune_at=(2,), max_segment_bytes=150_000)
    return Path(made.bundle)


@pytest.fixture(scope="session")
def tiny_checkpoint(export_bundle: Any) -> Path:
    """What both are made of."""
    made = export_bundle(tiny_config(kv_heads=2), dialect="both", prune_at=(2,))
    return Path(made.checkpoint)


QUESTIONS = ("What is this?", "Is it red?")


@pytest.fixture(scope="session")
def broken_photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that is no image."""
    path = tmp_path_factory.mktemp("broken") / "broken.png"
    path.write_bytes(b"not a picture")
    return path


@pytest.fixture(scope="session")
def scenes(
    photos: list[Path], broken_photo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Six questions about three photos, and two about a file that is no image."""
    path = tmp_path_factory.mktemp("scenes") / "scenes.json"
    records = [
        {
            "id": f"{photo.stem}-{number}",
            "image": str(photo),
            "conversations": [
                {"from": "human", "value": f"<image>\n{text}"},
                {"from": "gpt", "value": "nobody knows"},
            ],
        }
        for photo in [*photos, broken_photo]
        for number, text in enumerate(QUESTIONS)
    ]
    path.write_text(json.dumps(records))
    return path
