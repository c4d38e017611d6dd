"""Quantised checkpoints of other tools: what is read, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.models.quantised.packers import (
    AWQ_ORDER,
    TOOLS,
    Packed,
    Quantised,
    Tool,
    awq,
    compressed,
    gptq,
    int32_of,
    modelopt_int4,
    write_config,
)
from transformers import LlavaForConditionalGeneration

from atp_models.architecture import read_architecture
from atp_models.checkpoint import Checkpoint, check_tensors
from atp_models.quantised import QuantisedWeight, compressed_tensors, modelopt
from atp_models.quantised import awq as awq_module
from atp_models.quantised import gptq as gptq_module
from atp_models.quantised.packed_layer import nibbles
from atp_models.tensor_names import canonical_parts
from atp_models.training.loading import Source
from atp_runtime.errors import InputError

Make = Callable[[str], Quantised]
LAYER = "language_model.model.layers.1.mlp.up_proj"
WEIGHT = "model.language_model.layers.1.mlp.up_proj.weight"


UNPACK: dict[Any, Callable[[Any], QuantisedWeight]] = {
    awq: awq_module._unpack,
    gptq: partial(gptq_module._unpack, "layer", True),
    compressed: partial(compressed_tensors._unpack_int4, "layer"),
    modelopt_int4: modelopt._unpack_int4,
}


def as_read(packed: Packed) -> dict[str, torch.Tensor]:
    """The tensors of a layer as a file gives them."""
    tensors = packed.tensors.items()
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors}


def canonical(name: str) -> str:
    return canonical_parts(name)[0].name


@pytest.mark.parametrize("tool", TOOLS)
def test_weights_are_what_their_integers_stand_for(quantised: Make, tool: str) -> None:
    made = quantised(tool)

    checkpoint = Checkpoint.open(made.path)

    check_tensors(checkpoint, read_architecture(checkpoint))
    assert checkpoint.quantised.keys() == {canonical(name) for name in made.layers}
    exact = "pre_quant_scale" not in next(iter(made.layers.values())).tensors
    for name, packed in made.layers.items():
        found = checkpoint.read(canonical(name))
        expected = torch.from_numpy(packed.stands_for.astype(np.float32))
        assert found.dtype == torch.float32
        if exact:
            assert torch.equal(found, expected), name
        else:  # a second product rounds once more
            assert torch.allclose(found, expected, rtol=1e-6, atol=0), name


@pytest.mark.parametrize("tool", TOOLS)
def test_the_common_form_has_integers_of_its_bits_and_scales_as_stored(
    quantised: Make, tool: str
) -> None:
    made = quantised(tool)
    checkpoint = Checkpoint.open(made.path)

    weight = checkpoint.read_quantised(WEIGHT)

    low, high = {"int4": (-8, 7), "int8": (-128, 127)}[TOOLS[tool].weights]
    assert weight.values.dtype == torch.int8
    assert low <= int(weight.values.min()) < int(weight.values.max()) <= high
    stored = made.layers[f"{LAYER}.weight"].tensors
    scales = stored.get("scales", stored.get("weight_scale"))
    assert scales is not None
    assert sorted(weight.scales.flatten().tolist()) == sorted(scales.flatten().tolist())
    assert (weight.zeros is not None) == (tool == "awq" or "asymm" in tool or tool == "gptq v2")
    assert (weight.order is not None) == ("by activation" in tool)
    assert (weight.activation_scale is not None) == ("input_scale" in stored)


def test_the_rest_is_read_as_it_is_and_the_pieces_are_gone(quantised: Make) -> None:
    made = quantised("awq")

    checkpoint, floats = Checkpoint.open(made.path), Checkpoint.open(made.floats)

    assert checkpoint.tensors.keys() == floats.tensors.keys()
    for name in floats.tensors:
        assert checkpoint.tensors[name].shape == floats.tensors[name].shape
        assert torch.equal(checkpoint.read(name), floats.read(name))


def test_transformers_gives_the_same_answers_with_the_weights_that_were_read(
    quantised: Make,
) -> None:
    made = quantised("gptq by activation, asymmetric")
    checkpoint = Checkpoint.open(made.path)
    expected = LlavaForConditionalGeneration.from_pretrained(made.floats).eval()
    found = LlavaForConditionalGeneration(read_architecture(checkpoint).transformers_config())
    found.load_state_dict({name: checkpoint.read(name) for name in checkpoint.tensors})

    ids = torch.arange(3, 20).unsqueeze(0)
    with torch.inference_mode():
        assert torch.equal(found.eval()(ids).logits, expected(ids).logits)


def test_fingerprints_tell_quantised_checkpoints_apart(quantised: Make) -> None:
    prints = {Checkpoint.open(quantised(tool).path).fingerprint() for tool in TOOLS}
    assert len(prints) == len(TOOLS)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_nibbles_gives_back_what_was_packed(rows: int, words: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, 16, (rows, 8 * words))

    assert torch.equal(nibbles(torch.from_numpy(int32_of(numbers))), torch.from_numpy(numbers))


def test_zeros_of_the_first_gptq_format_may_have_borrowed() -> None:
    """A zero point of 0 less one borrows from the next; added back as whole words it returns."""
    weight = np.abs(np.random.default_rng(0).normal(size=(16, 32))) + 0.1  # every zero point is 0
    packed = gptq(weight, symmetric=False)
    assert packed.tensors["qzeros"].view(np.uint32)[0, 0] == 2**32 - 0x11111111

    found = UNPACK[gptq](as_read(packed)).dequantised().numpy()

    np.testing.assert_array_equal(found, packed.stands_for.astype(np.float32))


def test_training_is_refused(quantised: Make) -> None:
    with pytest.raises(InputError, match="14 quantised layers"):
        Source.open(quantised("awq").path)


# --- What is refused ---------------------------------------------------------------------

AWQ, GPTQ, CT = TOOLS["awq"].config, TOOLS["gptq"].config, TOOLS["compressed-tensors"].config
MODELOPT = TOOLS["modelopt int8"].config
CT8 = TOOLS["compressed-tensors int8"].config


def ct(config: Any, part: str = "weights", **changes: Any) -> dict[str, Any]:
    """A compressed-tensors config with another scheme."""
    group = config["config_groups"]["group_0"]
    return config | {"config_groups": {"group_0": group | {part: {**group[part], **changes}}}}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quant_method": "fp8", "activation_scheme": "static"}, "quantisation by fp8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "by bitsandbytes"),
        ({"quant_method": "auto-round", "bits": 4}, "by auto-round"),
        ({"bits": 4}, "by None"),
        (AWQ | {"version": "gemv"}, "AWQ, version 'gemv'"),
        (AWQ | {"backend": "llm-awq"}, "AWQ, llm-awq"),
        (AWQ | {"bits": 3}, "AWQ with 3 bits"),
        (AWQ | {"group_size": None}, "in groups of None"),
        (GPTQ | {"bits": 3}, "GPTQ with 3 bits"),
        (GPTQ | {"bits": 8}, "GPTQ with 8 bits"),
        (GPTQ | {"checkpoint_format": "marlin"}, "GPTQ in the format 'marlin'"),
        (GPTQ | {"is_marlin_format": True}, "GPTQ in the format 'marlin'"),
        (GPTQ | {"rotation": "hadamard"}, "GPTQ with rotation 'hadamard'"),
        (MODELOPT | {"quant_algo": "FP8"}, "ModelOpt's FP8"),
        (MODELOPT | {"quant_algo": "NVFP4"}, "ModelOpt's NVFP4"),
        (MODELOPT | {"quant_algo": "MIXED_PRECISION"}, "ModelOpt's MIXED_PRECISION"),
        (MODELOPT | {"quant_algo": "W4A16_AWQ", "has_zero_point": True}, "with zero points"),
        (ct(CT, num_bits=8), "weights int8 per group"),
        (ct(CT, type="float"), "weights float4 per group"),
        (CT | {"format": "nvfp4-pack-quantized"}, "'nvfp4-pack-quantized'"),
        (CT | {"transform_config": {"config_groups": {"u": {}}}}, "with transforms"),
        (CT | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "with sparsity"),
        (CT | {"config_groups": {}}, "with 0 schemes"),
        (ct(CT8, "input_activations", dynamic=True, strategy="token"), "dynamic int8 per token"),
        (ct(CT8, "input_activations", symmetric=False), "activations asymmetric int8"),
        (CT8 | {"format": "float-quantized"}, "'float-quantized'"),
    ],
)
def test_other_kinds_are_refused_by_name(
    config: dict[str, Any], said: str, quantised: Make, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(quantised("awq").path, tmp_path / "checkpoint"))
    write_config(path, Tool(config, awq))

    with pytest.raises(InputError, match=said) as refusal:
        Checkpoint.open(path)

    assert "config.json" in refusal.value.what
    assert "supported: " in refusal.value.why
    assert "atp-calibrate" in refusal.value.fix


@pytest.mark.parametrize("tool", ["awq", "gptq", "compressed-tensors", "modelopt int8"])
def test_a_config_without_such_layers_is_refused(
    tool: str, quantised: Make, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(quantised("awq").floats, tmp_path / "checkpoint"))
    write_config(path, TOOLS[tool])

    with pytest.raises(InputError, match="no layer is quantised"):
        Checkpoint.open(path)


def test_two_methods_are_refused(quantised: Make, tmp_path: Path) -> None:
    path = Path(shutil.copytree(quantised("awq").path, tmp_path / "checkpoint"))
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["quantization_config"] = dict(GPTQ)
    (path / "config.json").write_text(json.dumps(config))

    with pytest.raises(InputError, match="more than one method"):
        Checkpoint.open(path)


Tensors = dict[str, torch.Tensor]


def without(name: str) -> Callable[[Tensors], None]:
    def apply(stored: Tensors) -> None:
        del stored[f"{LAYER}.{name}"]

    return apply


def replaced(
    name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[Tensors], None]:
    def apply(stored: Tensors) -> None:
        stored[f"{LAYER}.{name}"] = change(stored[f"{LAYER}.{name}"]).contiguous()

    return apply


@pytest.mark.parametrize(
    ("tool", "change", "said"),
    [
        ("awq", without("qzeros"), "no qzeros"),
        ("awq", without("scales"), "no scales"),
        ("awq", replaced("scales", lambda it: it[:1]), r"scales is float16 \[1, 128\]"),
        ("awq", replaced("qweight", lambda it: it.short()), "qweight is int16"),
        ("awq", replaced("qweight", lambda it: it[:63]), "group_size 32 does not divide its 63"),
        ("awq", replaced("qweight", lambda it: it.flatten()), r"qweight is \[1024\]"),
        ("awq", replaced("qzeros", lambda it: it[:, :4]), r"qzeros is int32 \[2, 4\]"),
        ("gptq", without("g_idx"), "no g_idx"),
        ("gptq", replaced("qzeros", lambda it: it.t()), r"qzeros is int32 \[16, 2\]"),
        ("modelopt int4", without("weight"), "no weight"),
        ("modelopt int4", replaced("weight", lambda it: it.char()), "weight is int8"),
        ("modelopt int8", without("input_scale"), "no input_scale"),
        ("modelopt int8", replaced("weight_scale", lambda it: it[:3]), r"weight_scale is .*\[3\]"),
        ("compressed-tensors asymmetric", without("weight_zero_point"), "no weight_zero_point"),
        ("compressed-tensors int8", without("weight"), "no weight"),
    ],
)
def test_tensors_that_are_not_as_documented_are_refused_by_layer(
    tool: str, change: Callable[[Tensors], None], said: str, quantised: Make, tmp_path: Path
) -> None:
    path = damaged(quantised(tool).path, tmp_path, change)

    with pytest.raises(InputError, match=said) as refusal:
        Checkpoint.open(path)

    assert WEIGHT.removesuffix(".weight") in refusal.value.what


def test_groups_of_unequal_size_are_refused(quantised: Make, tmp_path: Path) -> None:
    change = replaced("g_idx", lambda it: torch.cat((it[:1] * 0, it[1:] * 0 + 1)))
    path = damaged(quantised("gptq").path, tmp_path, change)

    with pytest.raises(InputError, match="g_idx has groups of 0 to 63 inputs"):
        Checkpoint.open(path).read(WEIGHT)


def test_a_weight_stored_twice_is_refused(quantised: Make, tmp_path: Path) -> None:
    def add(stored: Tensors) -> None:
        stored[f"{LAYER}.weight"] = torch.zeros(128, 64)

    with pytest.raises(InputError, match="both quantised and not"):
        Checkpoint.open(damaged(quantised("awq").path, tmp_path, add))


def damaged(source: Path, tmp_path: Path, change: Callable[[Tensors], None]) -> Path:
    path = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    stored = {name: value.clone() for name, value in load_file(path / "model.safetensors").items()}
    change(stored)
    save_file(stored, path / "model.safetensors")
    return path


@given(
    st.sampled_from(list(UNPACK)),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
def test_any_shape_of_whole_groups_comes_back(
    pack: Any, groups: int, eights: int, seed: int
) -> None:
    packed = pack(np.random.default_rng(seed).normal(size=(8 * eights, 32 * groups)))

    found = UNPACK[pack](as_read(packed)).dequantised().numpy()

    np.testing.assert_allclose(found, packed.stands_for, rtol=1e-6, atol=0)


def test_awq_order_is_the_documented_one() -> None:
    packed = int32_of(np.arange(8)[np.newaxis], AWQ_ORDER).view(np.uint32)
    assert packed[0, 0] == 0x75316420
