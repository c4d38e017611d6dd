"""From a conversation to the decoder's token ids."""

from __future__ import annotations

from collections.abc import Sequence

from atp_runtime.chat import ChatTemplate, ImagePart, Message
from atp_runtime.errors import InputError
from atp_runtime.tokenizer import Tokenizer


class PromptWriter:
    """Renders conversations with a checkpoint's template and tokenizer.

    Args:
        template: The checkpoint's.
        tokenizer: The checkpoint's.
        image_token_id: The placeholder of images.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, image_token_id: int) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._image_token_id = image_token_id

    def draft(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to where the answer begins, one placeholder per image.

        Raises:
            InputError: The template refuses the conversation, or does not place every image.
        """
        ids = self._tokenizer.encode_prompt(
            self._template.render(messages, add_generation_prompt=True)
        )
        images = sum(isinstance(part, ImagePart) for it in messages for part in it.content)
        places = ids.count(self._image_token_id)
        if places != images:
            raise InputError(
                f"the prompt has {places} image placeholder(s) for {images} image(s)",
                why=f"each image takes the place of one token {self._image_token_id}, and nothing "
                "says where the others belong.",
                fix="ask without photos, or use a bundle whose chat template has a place for every "
                "photo and whose tokenizer knows the placeholder.",
            )
        return ids

    def ids(self, draft: Sequence[int], counts: Sequence[int]) -> list[int]:
        """A draft with one placeholder per token of its images.

        Args:
            draft: From `draft`.
            counts: Tokens of each image, in order.
        """
        return expand_images(draft, self._image_token_id, counts)

    def check_text(self, text: str, name: str) -> None:
        """Makes sure that a text cannot be taken for an image.

        Args:
            text: What the user wrote.
            name: What it is, for the message.

        Raises:
            InputError: The placeholder is written out in it.
        """
        placeholder = self._template.image_token
        if placeholder in text:
            raise InputError(
                f"{name} contains {placeholder}",
                why="the model takes that for the place of a photo, and the places are set by "
                "the chat template.",
                fix=f"leave it away, or write it as {_spaced(placeholder)}; photos are given "
                "beside the question.",
            )

    def quotable(self, answer: str) -> str:
        """An answer as later prompts may repeat it, the placeholder no longer being one."""
        placeholder = self._template.image_token
        return answer.replace(placeholder, _spaced(placeholder))


def expand_images(ids: Sequence[int], image_token_id: int, counts: Sequence[int]) -> list[int]:
    """Replaces each image's single placeholder by one per token of the image.

    Args:
        ids: Token ids of a rendered conversation.
        image_token_id: The placeholder.
        counts: Tokens of each image, in order; as many images as placeholders.
    """
    following = iter(counts)
    expanded: list[int] = []
    for token in ids:
        expanded += [token] * (next(following) if token == image_token_id else 1)
    return expanded


def _spaced(placeholder: str) -> str:
    return f"{placeholder[:1]} {placeholder[1:]}"
