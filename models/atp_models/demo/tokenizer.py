"""The demo's tokenizer and chat template: SmolLM2's own, with a placeholder for images."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from atp_runtime.errors import CheckFailedError

IMAGE_TOKEN = "<image>"  # noqa: S105  a placeholder in prompts, no secret

# The template of the GGUF file, extended: content may be a list of parts, as LLaVA's
# processors and chat APIs pass it. Images come before text within a message, as in LLaVA-1.5.
# A conversation without a system message gets none: the GGUF file's default would cost some
# twenty tokens before every image.
# The trims make it print the same whether or not the reader's Jinja trims blocks.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] if part['type'] == 'image' -%}
            {{- '<image>\\n' -}}
        {%- endfor -%}
        {%- for part in message['content'] if part['type'] == 'text' -%}
            {{- part['text'] -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def read_tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    """Rebuild the byte-level BPE tokenizer of a GGUF file and add `<image>` to its end.

    Raises:
        CheckFailedError: The file asks for another way of splitting text than SmolLM's.
    """
    splitting = reader.fields["tokenizer.ggml.pre"].contents()
    if splitting != "smollm":
        raise CheckFailedError(
            f"the language model's file splits text the {splitting!r} way, not the 'smollm' way",
            why="another split gives other tokens than the model was trained on",
            fix="use the pinned package named in atp_models.demo.parts",
        )
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in reader.fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    )
    # Digits come out one by one before words are split off: Transformers' own GGUF reader
    # leaves that step out and differs where spaces precede a number.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    control = [t for t, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in [*control, IMAGE_TOKEN]])
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, reader: gguf.GGUFReader, directory: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "add_bos_token": False,
        "bos_token": _token_in_role(tokenizer, reader, "bos"),
        "clean_up_tokenization_spaces": False,
        "eos_token": _token_in_role(tokenizer, reader, "eos"),
        "extra_special_tokens": {"image_token": IMAGE_TOKEN},
        "model_max_length": reader.fields["llama.context_length"].contents(),
        "pad_token": _token_in_role(tokenizer, reader, "padding"),
        # Answers of a batch begin at the same place when prompts are padded on the left.
        "padding_side": "left",
        "processor_class": "LlavaProcessor",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": _token_in_role(tokenizer, reader, "unknown"),
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def _token_in_role(tokenizer: Tokenizer, reader: gguf.GGUFReader, role: str) -> str | None:
    """The token that the GGUF file gives the role `bos`, `eos`, `padding` or `unknown`."""
    return tokenizer.id_to_token(reader.fields[f"tokenizer.ggml.{role}_token_id"].contents())
