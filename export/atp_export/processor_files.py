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
from atp_runtime.text_files import read_json_if_present
from atp_runtime.tokenizer import Tokenizer

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
# What `tokenizer.json` is made from where a checkpoint has none.
_OLDER = ("tokenizer.model", "vocab.json", "merges.txt")


def processor_sources(checkpoint: Path) -> tuple[Path, ...]:
    """The files of a checkpoint that decide what `copy_processor_files` writes."""
    return tuple(checkpoint / name for name in (*FILES, *_OLDER) if (checkpoint / name).is_file())


def copy_processor_files(checkpoint: Path, directory: Path) -> list[str]:
    """Copies the files into `directory`, checks them and returns their names.

    A checkpoint that has only a SentencePiece `tokenizer.model` gets its `tokenizer.json` from
    Transformers' converter; the device needs no other tokenizer library then.

    Raises:
        InputError: Tokenizer or image processor are missing, damaged or not supported.
    """
    read_processor_config(_image_processor(checkpoint))
    directory.mkdir(parents=True, exist_ok=True)
    names = [name for name in FILES if (checkpoint / name).is_file()]
    for name in names:
        shutil.copyfile(checkpoint / name, directory / name)
    if TOKENIZER in names:
        Tokenizer.from_dir(checkpoint)
    else:
        _convert_tokenizer(checkpoint, directory)
        names.append(TOKENIZER)
    ChatTemplate.from_dir(checkpoint)
    return sorted(names)


def _image_processor(checkpoint: Path) -> Path:
    """The file Transformers 5 reads: the newer one, if the image processor is nested in it."""
    nested = checkpoint / "processor_config.json"
    own = checkpoint / "preprocessor_config.json"
    if "image_processor" in read_json_if_present(nested):
        return nested
    if own.is_file():
        return own
    raise InputError(
        f"{checkpoint}: no {own.name}",
        why="without it nobody knows how photos are resized and normalised.",
        fix="copy it from where the weights came from.",
    )


def _convert_tokenizer(checkpoint: Path, directory: Path) -> None:
    # Importing Transformers takes seconds that an export with tokenizer.json need not spend.
    from transformers import AutoTokenizer  # noqa: PLC0415

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        tokenizer.backend_tokenizer.save(str(directory / TOKENIZER))
    except Exception as error:  # whatever the converters of so many formats raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"{checkpoint}: no {TOKENIZER}",
            why=f"prompts cannot be read without it, and Transformers cannot make it ({reason}).",
            fix=f"copy {TOKENIZER} from where the weights came from.",
        ) from error
    Tokenizer.from_dir(directory)
