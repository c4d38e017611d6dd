"""Copies what the device needs to read prompts and photos: tokenizer, templates, processor."""

from __future__ import annotations

import shutil
from pathlib import Path

from atp_runtime.errors import InputError

REQUIRED = ("tokenizer.json", "preprocessor_config.json")
OPTIONAL = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "generation_config.json",
    "config.json",
)


def copy_processor_files(checkpoint: Path, directory: Path) -> list[str]:
    """Copies the files into `directory` and returns their names.

    A checkpoint that has only a SentencePiece `tokenizer.model` gets its `tokenizer.json` from
    Transformers' converter; the device needs no other tokenizer library then.

    Raises:
        InputError: Tokenizer or image processor are missing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    names = [name for name in (*REQUIRED, *OPTIONAL) if (checkpoint / name).is_file()]
    for name in names:
        shutil.copyfile(checkpoint / name, directory / name)
    if "tokenizer.json" not in names:
        _convert_tokenizer(checkpoint, directory)
        names.append("tokenizer.json")
    if not {"preprocessor_config.json", "processor_config.json"} & set(names):
        raise InputError(
            f"{checkpoint}: no preprocessor_config.json",
            why="without it nobody knows how photos are resized and normalised.",
            fix="copy it from the checkpoint's vision tower or from the original repository.",
        )
    return sorted(names)


def _convert_tokenizer(checkpoint: Path, directory: Path) -> None:
    # Importing Transformers takes seconds that an export with tokenizer.json need not spend.
    from transformers import AutoTokenizer  # noqa: PLC0415

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, use_fast=True)
        tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))
    except (OSError, ValueError, AttributeError, ImportError) as error:
        raise InputError(
            f"{checkpoint}: no tokenizer.json",
            why=f"and Transformers could not convert what is there ({error}).",
            fix="copy tokenizer.json from the original repository into the checkpoint.",
        ) from error
