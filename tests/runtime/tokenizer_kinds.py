"""Tokenizers of each kind that checkpoints have, trained on a few lines."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer

from atp_runtime.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, twice: 1, 2, 30!",
    "USER: What is in the picture? ASSISTANT: A cat on a mat, and it's asleep.",
    "def f(x):\n    return x  # a comment\n",
    "Ünïcödé, 日本語 and emoji 🙂🙂 too.",
] * 5
SPECIAL = ["<unk>", "<s>", "</s>", "<image>"]


@functools.cache
def byte_level() -> tokenizers.Tokenizer:
    """As SmolLM2, Llama 3 and Qwen2."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("a word", special=False)])
    return backend


def sentencepiece_bpe(**pipeline: Any) -> tokenizers.Tokenizer:
    """A SentencePiece model with byte tokens, converted as the Llama 2 files are."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator([text.replace("日", "") for text in CORPUS], trainer)
    trained = json.loads(backend.to_str())
    vocab = trained["model"]["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    trained["model"] |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    trained["pre_tokenizer"] = None
    converted = tokenizers.Tokenizer.from_str(json.dumps(trained))
    for name, value in pipeline.items():
        setattr(converted, name, value)
    converted.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return converted


@functools.cache
def llama_legacy() -> tokenizers.Tokenizer:
    return sentencepiece_bpe(
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoder=decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        ),
    )


@functools.cache
def llama_metaspace() -> tokenizers.Tokenizer:
    return sentencepiece_bpe(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        decoder=decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        ),
    )


@functools.cache
def unigram() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


KINDS = [byte_level, llama_legacy, llama_metaspace, unigram]
Kind = Callable[[], tokenizers.Tokenizer]
TEXTS = st.lists(
    st.one_of(st.sampled_from(["<s>", "</s>", "<image>", "\n", "  ", *CORPUS]), st.text()),
    max_size=4,
).map("".join)


def write_files(folder: Path, backend: tokenizers.Tokenizer, **files: dict[str, Any]) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    # Transformers picks the tokenizer class by the kind of model, as it does for a checkpoint.
    for name, content in {"config": {"model_type": "llava"}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@functools.cache
def both(kind: Kind, folder: Path) -> tuple[Tokenizer, Any]:
    write_files(folder, kind(), tokenizer_config={"tokenizer_class": "LlamaTokenizer"})
    return Tokenizer.from_dir(folder), AutoTokenizer.from_pretrained(folder)
