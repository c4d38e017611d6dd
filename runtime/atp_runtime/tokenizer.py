"""Text to token ids and back, from a checkpoint's `tokenizer.json`.

The ids equal those of Transformers 5 for a LLaVA checkpoint, which loads such files as
`TokenizersBackend`: `tokenizer.json` alone decides on BOS (its post-processor does; the
`add_bos_token` of `tokenizer_config.json` is ignored wherever a `tokenizer.json` exists), and the
special tokens the other files name are added to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from atp_runtime.decoding_stages import Stage, streaming_stages
from atp_runtime.errors import InputError
from atp_runtime.special_tokens import SpecialTokens, read_special_tokens
from atp_runtime.text_files import read_json_if_present, read_text, wrong_form


class Tokenizer:
    """The tokenizer of a checkpoint; `Tokenizer.from_dir` makes one.

    Attributes:
        eos_token_ids: The ids that end an answer: `eos_token_id` of `generation_config.json`,
            else the `eos_token` of the tokenizer's files, else none.
        bos_token: The text of the token that begins a sequence, if the files name one.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token: str | None,
        eos_token_ids: frozenset[int],
    ) -> None:
        self.backend = backend
        self.bos_token = bos_token
        self.eos_token_ids = eos_token_ids

    @classmethod
    def from_dir(cls, processor_dir: Path) -> Tokenizer:
        """Reads the tokenizer of a checkpoint.

        Args:
            processor_dir: Directory with `tokenizer.json` and, if the checkpoint has them,
                `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json`.

        Raises:
            InputError: A file is missing or damaged.
        """
        path = processor_dir / "tokenizer.json"
        text = read_text(path)
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing more specific
            raise wrong_form(path, f"is not a tokenizer: {error}") from error
        special = read_special_tokens(processor_dir)
        _add_special_tokens(backend, special)
        backend.no_truncation()
        backend.no_padding()
        return cls(
            backend,
            bos_token=special.content("bos_token"),
            eos_token_ids=_eos_token_ids(processor_dir, backend, special),
        )

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included; an embedding table may have more rows."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def token_id(self, token: str) -> int | None:
        """The id of a token given by its text, None if there is no such token."""
        return self.backend.token_to_id(token)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The ids of a text; special tokens written out in it count as those tokens.

        Args:
            text: Any text.
            add_special_tokens: Whether to add what the checkpoint puts around a sequence,
                usually BOS in front.

        Raises:
            InputError: The text has a lone surrogate, as undecodable command-line bytes do.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text has a character that is no Unicode text: {error}",
                why="a tokenizer works on valid Unicode",
                fix="give the text as valid UTF-8",
            ) from error
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_prompt(self, prompt: str) -> list[int]:
        """The ids of a rendered conversation, with BOS once, whether or not the template wrote it.

        Source: `ProcessorMixin.apply_chat_template` of Transformers 5.

        Raises:
            InputError: As `encode`.
        """
        begun = self.bos_token is not None and prompt.startswith(self.bos_token)
        return self.encode(prompt, add_special_tokens=not begun)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids beyond the vocabulary are skipped."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)


class StreamDecoder:
    """Turns the ids of one answer into text while they come.

    What `push` and the final `flush` return, joined, is `tokenizer.decode` of all ids. No text is
    returned that a later id could change: half a character, or a run of SentencePiece byte tokens
    that has not ended. The time per id does not depend on how many came before.

    Args:
        tokenizer: The tokenizer that made the ids' vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._backend = tokenizer.backend
        self._skipped = {
            token_id
            for token_id, token in self._backend.get_added_tokens_decoder().items()
            if token.special
        }
        self._stages = streaming_stages(self._backend.decoder)

    def push(self, token_id: int) -> str:
        """The text that became certain by this id; often empty."""
        token = None if token_id in self._skipped else self._backend.id_to_token(token_id)
        return "" if token is None else "".join(_through(self._stages, [token]))

    def flush(self) -> str:
        """The text kept back so far; to be called once, after the last id."""
        rest: list[str] = []
        for stage in self._stages:
            rest = [*_through([stage], rest), *stage.flush()]
        return "".join(rest)


def _through(stages: Sequence[Stage], tokens: list[str]) -> list[str]:
    for stage in stages:
        tokens = [text for token in tokens for text in stage.push(token)]
    return tokens


def _add_special_tokens(backend: tokenizers.Tokenizer, special: SpecialTokens) -> None:
    """Adds what the other files declare, in Transformers' order: it decides new tokens' ids."""
    named = {token.content for token in special.named.values()}
    in_backend = backend.get_added_tokens_decoder().values()
    declared = list(in_backend if special.declared is None else special.declared)
    for token in declared:
        token.special = token.special or token.content in named
    backend.add_tokens(declared)
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    wanted = [*special.named.values(), *special.extra]
    backend.add_tokens([token for token in wanted if token.content not in known])


def _eos_token_ids(
    processor_dir: Path, backend: tokenizers.Tokenizer, special: SpecialTokens
) -> frozenset[int]:
    path = processor_dir / "generation_config.json"
    configured: Any = read_json_if_present(path).get("eos_token_id")
    if configured is None:
        eos_token = special.content("eos_token")
        configured = [] if eos_token is None else [backend.token_to_id(eos_token)]
    ids = configured if isinstance(configured, list) else [configured]
    if not all(type(token_id) is int for token_id in ids):
        raise wrong_form(path, f"has an eos_token_id that is no id or list of ids: {configured!r}")
    return frozenset(ids)
