"""Copies what the device needs to read prompts and photos: tokenizer, templates, processor.

The runtime's own readers try the files before anything is exported, so that a checkpoint the
device could not talk to is refused here.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from atp_runtime.chat import ChatTemplate
from atp_runtime.errors import InputError
from atp_runtime.processor_config import read_processor_config
from atp_runtime.tokenizer import Tokenizer
from atp_runtime.vision import image_processor_file

TOKENIZER = "tokenizer.json"
FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "config.json",
)


def processor_sources(checkpoint: Path) -> tuple[Path, ...]:
    """The files of a checkpoint that decide what `copy_processor_files` writes."""
    return tuple(checkpoint / name for name in FILES if (checkpoint / name).is_file())


def copy_processor_files(checkpoint: Path, directory: Path) -> list[str]:
    """Copies the files into `directory`, checks them and returns their names.

    Raises:
        InputError: Tokenizer or image processor are missing, damaged or not supported.
    """
    if not (checkpoint / TOKENIZER).is_file():
        raise InputError(
            f"{checkpoint}: no {TOKENIZER}",
            why="the device reads prompts with it alone, whatever older tokenizer files there are.",
            fix="copy it from where the weights came from, or make it with Transformers: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...).",
        )
    Tokenizer.from_dir(checkpoint)
    ChatTemplate.from_dir(checkpoint)
    read_processor_config(image_processor_file(checkpoint))
    directory.mkdir(parents=True, exist_ok=True)
    sources = processor_sources(checkpoint)
    for source in sources:
        shutil.copyfile(source, directory / source.name)
    return sorted(source.name for source in sources)
