"""A working tokenizer and image processor for a LLaVA of random weights."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlavaConfig, PreTrainedTokenizerFast

from atp_models.json_files import write_json
from atp_runtime.errors import InputError

_UNKNOWN, _START, _END, _IMAGE, _PAD = "<unk>", "<s>", "</s>", "<image>", "<pad>"
_SPECIAL_TOKENS = 5
# Mean and standard deviation of red, green and blue in the towers' training data.
_CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
# Vicuna's, which LLaVA-1.5 was trained with; image parts come before the text of a turn.
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'][0]['text'] }} "
    "{% else %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def write_processor(out_dir: Path, config: LlavaConfig) -> None:
    """Writes tokenizer, image-processor, processor and chat-template files.

    Args:
        out_dir: Existing directory.
        config: Gives image size, patch size and the ids of the special tokens.

    Raises:
        InputError: The vocabulary has no room for 256 bytes and 5 special tokens.
    """
    if config.text_config.vocab_size < 256 + _SPECIAL_TOKENS:
        raise InputError(
            f"a vocabulary of {config.text_config.vocab_size} is too small",
            why=f"a byte-level tokenizer has 256 entries, and {_SPECIAL_TOKENS} special tokens",
            fix="choose a larger vocabulary",
        )
    tower = config.vision_config
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": _IMAGE,
        "patch_size": tower.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": 0 if tower.model_type == "siglip_vision_model" else 1,
    }
    images = _image_processor(tower.model_type, tower.image_size)
    write_json(out_dir / "processor_config.json", processor)
    write_json(out_dir / "preprocessor_config.json", images)
    (out_dir / "chat_template.jinja").write_text(_CHAT_TEMPLATE, encoding="utf-8")
    _tokenizer(config).save_pretrained(out_dir)


def _image_processor(tower: str, side: int) -> dict[str, Any]:
    """The image processor that a tower of this kind is published with, at its size."""
    square = {"height": side, "width": side}
    common = {
        "processor_class": "LlavaProcessor",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_resize": True,
        "resample": 3,
    }
    if tower == "siglip_vision_model":
        half = [0.5, 0.5, 0.5]
        kind = "SiglipImageProcessor"
        return common | {
            "image_processor_type": kind,
            "size": square,
            "image_mean": half,
            "image_std": half,
        }
    mean, std = _IMAGENET if tower == "dinov2" else _CLIP
    return common | {
        "image_processor_type": "BitImageProcessor" if tower == "dinov2" else "CLIPImageProcessor",
        "do_convert_rgb": True,
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": square,
        "image_mean": mean,
        "image_std": std,
    }


def _tokenizer(config: LlavaConfig) -> PreTrainedTokenizerFast:
    special = {
        0: _UNKNOWN,
        config.text_config.bos_token_id: _START,
        config.text_config.eos_token_id: _END,
        config.image_token_id: _IMAGE,
        config.text_config.pad_token_id: _PAD,
    }
    tokenizer = _byte_level(_placed(_trained(config.text_config.vocab_size), special))
    tokenizer.add_special_tokens(list(special.values()))
    start = (_START, config.text_config.bos_token_id)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A", pair=f"{_START} $A {_START} $B", special_tokens=[start]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=_UNKNOWN,
        bos_token=_START,
        eos_token=_END,
        pad_token=_PAD,
        model_max_length=config.text_config.max_position_embeddings,
        extra_special_tokens={"image_token": _IMAGE},
    )


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@lru_cache
def _trained(vocabulary: int) -> Tokenizer:
    """A byte-level BPE of at most `vocabulary` entries, trained on this package's source."""
    tokenizer = _byte_level(models.BPE())
    texts = (
        file.read_text(encoding="utf-8") for file in sorted(Path(__file__).parent.glob("*.py"))
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - _SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _placed(trained: Tokenizer, special: dict[int, str]) -> models.BPE:
    """The trained merges with ids moved out of the way of the special tokens.

    Ids between the last learnt entry and the last special token get placeholder entries, as
    a tokenizer without gaps is what every other program expects.
    """
    model = json.loads(trained.to_str())["model"]
    learnt = iter(sorted(model["vocab"], key=model["vocab"].__getitem__))
    last = max(*special, len(model["vocab"]) + len(special) - 1)
    vocabulary = {
        special.get(token_id) or next(learnt, f"<unused_{token_id}>"): token_id
        for token_id in range(last + 1)
    }
    return models.BPE(
        vocab=vocabulary, merges=[tuple(pair) for pair in model["merges"]], unk_token=_UNKNOWN
    )
