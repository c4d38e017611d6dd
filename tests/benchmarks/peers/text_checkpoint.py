"""The decoder of a LLaVA checkpoint as a LlamaForCausalLM directory, which every peer reads."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from tests.benchmarks.peers.made_once import made_once
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from atp_models.tensor_names import canonical_parts

_LANGUAGE = "model.language_model."


def text_checkpoint(source: Path, target: Path) -> Path:
    """Writes the directory unless it is there, file by file, weights as they are stored.

    Args:
        source: A LLaVA checkpoint with a LLaMA decoder.
        target: The directory.
    """
    return made_once(target, lambda path: _write(source, path))


def text_name(stored: str) -> str | None:
    """The name of a LLaVA's tensor in the decoder alone; None if it is not the decoder's."""
    name = canonical_parts(stored)[0].name
    if name.startswith(_LANGUAGE):
        return "model." + name.removeprefix(_LANGUAGE)
    return name if name.startswith("lm_head.") else None


def _write(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    total = 0
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            names = {stored: text_name(stored) for stored in weights.keys()}  # noqa: SIM118
            held = {name: weights.get_tensor(stored) for stored, name in names.items() if name}
        if held:
            save_file(held, target / file.name, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(held, file.name))
            total += sum(tensor.nbytes for tensor in held.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    config = AutoConfig.from_pretrained(source)
    text = config.text_config
    text.tie_word_embeddings = "lm_head.weight" not in weight_map
    text.architectures, text.dtype = ["LlamaForCausalLM"], config.dtype
    text.save_pretrained(target)
    GenerationConfig.from_model_config(text).save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
