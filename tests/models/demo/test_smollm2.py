from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from atp_models.demo.smollm2 import read_language_model
from atp_runtime.errors import CheckFailedError


def test_weights_equal_those_of_transformers_own_gguf_loader(tiny_gguf, tmp_path: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype=torch.float32
    ).state_dict()
    tokens = theirs["model.embed_tokens.weight"].shape[0]
    ours = read_language_model(tiny_gguf, vocabulary=tokens).state
    assert theirs.keys() - ours.keys() == {"lm_head.weight"}
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_config_equals_that_of_transformers_own_gguf_loader(tiny_gguf, tmp_path: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf").config
    ours = read_language_model(tiny_gguf, vocabulary=320).config
    assert ours.vocab_size == 320
    for name in (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps"),
        *("rope_parameters", "tie_word_embeddings", "bos_token_id", "eos_token_id"),
    ):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_logits_of_added_tokens_never_win_whatever_the_hidden_state(tiny_gguf) -> None:
    model = read_language_model(tiny_gguf, vocabulary=320)
    table = model.state["model.embed_tokens.weight"]
    tokens = len(tiny_gguf.fields["tokenizer.ggml.tokens"].contents())
    assert table.shape == (320, model.config.hidden_size)
    torch.manual_seed(0)
    logits = torch.randn(500, model.config.hidden_size) @ table.T
    assert int(logits.argmax(dim=-1).max()) < tokens


def test_another_architecture_is_refused_by_name(
    make_gguf: Callable[..., gguf.GGUFReader],
) -> None:
    with pytest.raises(CheckFailedError, match="qwen2"):
        read_language_model(make_gguf(architecture="qwen2"), vocabulary=320)
