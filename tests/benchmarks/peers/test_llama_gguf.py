import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.benchmarks.peers.llama_gguf import KINDS, gguf_name, interleaved, write_gguf
from tests.benchmarks.peers.text_checkpoint import text_checkpoint
from tests.conftest import write_checkpoint
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

from atp_models.random_configs import tiny_config


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def llava(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(kv_heads=2, layers=2, tied=request.param)
    return write_checkpoint(tmp_path_factory.mktemp("llava"), config)


@pytest.fixture(scope="module")
def decoder(llava: Path) -> Path:
    return text_checkpoint(llava, llava.with_name(f"{llava.name}-decoder"))


def written(decoder: Path, target: Path, precision: str) -> gguf.GGUFReader:
    write_gguf(decoder, target, precision)
    return gguf.GGUFReader(target)


def test_decoder_alone_gives_the_llavas_logits(llava: Path, decoder: Path) -> None:
    ids = torch.arange(10, 20)[None]

    alone = AutoModelForCausalLM.from_pretrained(decoder)(ids).logits
    whole = LlavaForConditionalGeneration.from_pretrained(llava)(ids).logits

    assert torch.equal(alone, whole)


def test_fp32_file_holds_every_weight_of_the_decoder(decoder: Path, tmp_path: Path) -> None:
    weights = {it.name: it for it in written(decoder, tmp_path / "it.gguf", "fp32").tensors}
    stored = load_file(decoder / "model.safetensors")
    heads = {"attn_q": 4, "attn_k": 2}

    for name, tensor in stored.items():
        found = weights.pop(gguf_name(name)).data
        part = gguf_name(name).split(".")[-2]
        if part in heads:
            # As llama.cpp pairs them: channels 2i and 2i + 1 turn by the same angle.
            pairs = found.reshape(heads[part], -1, 2, found.shape[-1])
            found = np.concatenate([pairs[:, :, 0], pairs[:, :, 1]], axis=1)
        assert np.array_equal(found.reshape(tensor.shape), tensor.numpy())
    assert not weights


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_matrices_are_stored_in_the_precision_and_vectors_in_fp32(
    precision: str, decoder: Path, tmp_path: Path
) -> None:
    for tensor in written(decoder, tmp_path / "it.gguf", precision).tensors:
        is_vector = tensor.name.endswith("norm.weight")
        expected = KINDS["fp32"] if is_vector else KINDS[precision]
        assert tensor.tensor_type == expected


def test_metadata_describe_the_decoder(decoder: Path, tmp_path: Path) -> None:
    reader = written(decoder, tmp_path / "it.gguf", "fp32")
    config = json.loads((decoder / "config.json").read_text())

    found = {name: field.contents() for name, field in reader.fields.items()}

    assert found["llama.block_count"] == 2
    assert found["llama.attention.head_count"] == 4
    assert found["llama.attention.head_count_kv"] == 2
    assert found["llama.rope.dimension_count"] == 16
    assert found["llama.rope.freq_base"] == 10000.0
    assert found["llama.vocab_size"] == config["vocab_size"]


def test_scaled_rope_is_refused(tmp_path: Path) -> None:
    config = tiny_config(layers=1, rope_scaling={"rope_type": "linear", "factor": 2.0})
    source = text_checkpoint(write_checkpoint(tmp_path / "llava", config), tmp_path / "decoder")

    with pytest.raises(ValueError, match="RoPE of type linear"):
        write_gguf(source, tmp_path / "it.gguf", "fp32")


def test_biases_are_refused() -> None:
    with pytest.raises(ValueError, match=r"q_proj\.bias"):
        gguf_name("model.layers.0.self_attn.q_proj.bias")


@given(heads=st.integers(1, 4), half=st.integers(1, 6), seed=st.integers(0, 9))
def test_scores_are_those_of_rotated_halves_when_pairs_are_rotated(
    heads: int, half: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    width, channels = 5, 2 * half
    weight = random.standard_normal((heads * channels, width))
    hidden = random.standard_normal(width)
    angle = random.standard_normal(half)

    # Transformers: channel i turns with channel i + half.
    low, high = np.split((weight @ hidden).reshape(heads, channels), 2, axis=1)
    halves = np.stack([low + 1j * high], axis=0)[0] * np.exp(1j * angle)
    # llama.cpp: channel 2i turns with channel 2i + 1.
    pairs = (interleaved(weight, heads) @ hidden).reshape(heads, half, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)

    assert np.allclose(halves, turned)
