"""Finds the special tokens a checkpoint's text files speak of.

Source: `PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__` of
Transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from atp_runtime.text_files import read_json_if_present, wrong_form

_STANDARD_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens `tokenizer_config.json` and `special_tokens_map.json` speak of.

    Attributes:
        named: Tokens with a role, `bos_token` or `image_token` for example.
        extra: Special tokens without a role.
        declared: The entries of `added_tokens_decoder`, in the order of their ids; None where
            `tokenizer.json` alone declares tokens.
    """

    named: Mapping[str, AddedToken]
    extra: tuple[AddedToken, ...]
    declared: tuple[AddedToken, ...] | None

    def content(self, role: str) -> str | None:
        """The text of the token with this role, None where the files name none."""
        token = self.named.get(role)
        return None if token is None else token.content


def read_special_tokens(processor_dir: Path) -> SpecialTokens:
    """The special tokens of a checkpoint, found as Transformers 5 finds them.

    `special_tokens_map.json` counts only where `tokenizer_config.json` has no
    `added_tokens_decoder`, and then it overrides.

    Raises:
        InputError: One of the two files is damaged or has entries of an unknown form.
    """
    settings = read_json_if_present(processor_dir / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:
        settings = settings | read_json_if_present(processor_dir / "special_tokens_map.json")
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    try:
        return SpecialTokens(
            named=_named(settings | extra if isinstance(extra, dict) else settings),
            extra=() if isinstance(extra, dict) else tuple(_special(value) for value in extra),
            declared=_declared(settings.get("added_tokens_decoder")),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise wrong_form(
            processor_dir / "tokenizer_config.json",
            f"or special_tokens_map.json beside it describes a special token oddly: {error}",
        ) from error


def _named(settings: dict[str, Any]) -> dict[str, AddedToken]:
    """The tokens with a role: the standard roles first, then the others as the files list them.

    Tokens that `tokenizer.json` lacks get their ids in this order.
    """
    roles = [*_STANDARD_ROLES, *(role for role in settings if role not in _STANDARD_ROLES)]
    return {
        role: _special(settings[role])
        for role in roles
        if role.endswith("_token") and isinstance(settings.get(role), (str, dict))
    }


def _special(value: str | dict[str, Any]) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=True)
    return AddedToken(**_fields(value) | {"special": True})


def _declared(by_id: dict[str, dict[str, Any]] | None) -> tuple[AddedToken, ...] | None:
    if by_id is None:
        return None
    in_order = sorted(by_id.items(), key=lambda entry: int(entry[0]))
    return tuple(AddedToken(**_fields(fields)) for _, fields in in_order)


def _fields(value: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value["content"], str):
        raise TypeError(f"the content {value['content']!r} is no text")
    return {key: field for key, field in value.items() if key != "__type"}
