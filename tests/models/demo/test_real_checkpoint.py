"""The real parts, end to end. A machine that cannot fetch them fails here, on purpose."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    Dinov2Model,
    LlavaForConditionalGeneration,
)

from atp_models.demo import build_demo_checkpoint, default_cache_dir, demo_photo
from atp_models.demo.build import build_checkpoint
from atp_models.demo.data.sets import SETS
from atp_models.demo.deltas import MLP, read_deltas
from atp_models.demo.dinov2 import read_vision_tower
from atp_models.demo.fetching import fetch, unpack
from atp_models.demo.parts import LANGUAGE_MODEL, VISION_TOWER
from atp_models.demo.recipe import DELTAS, DEMO

pytestmark = pytest.mark.slow

# What llama.cpp (October 2026) makes of these texts with this very GGUF file.
LLAMA_CPP_IDS = {
    "abc 12345  67\n\n    0 x": [
        *(25276, 216, 33, 34, 35, 36, 37, 256, 38, 39, 35988, 32, 1792),
    ],
    "def f(x):\n    return x ** 2  # 100 %\n\n\nprint(f(3.14))\n": [
        *(1604, 275, 24, 104, 727, 472, 1003, 1792, 1903, 216, 34, 216, 907, 216, 33, 32, 32),
        *(2471, 1116, 198, 3272, 24, 86, 24, 35, 30, 33, 36, 1292, 198),
    ],
    "\tif a[10]   ==  7:\n\t\treturn {'k': \"v\"}\r\n": [
        *(197, 342, 253, 75, 33, 32, 77, 256, 1758, 256, 39, 42, 3354, 197, 5406, 7353, 91),
        *(1539, 476, 102, 23597, 2738),
    ],
    "日本語のテキスト、中文 한국어 русский": [
        *(23274, 115, 40993, 179, 120, 248, 26453, 11100, 224, 10391, 251, 10391, 134, 11100),
        *(226, 29917, 28589, 29184, 216, 33085, 246, 181, 130, 251, 183, 240, 129, 216, 9175),
        *(14714, 9382, 39511, 7872, 24958),
    ],
    "🙂🏳️\u200d🌈 flags 🇫🇷": [
        *(10813, 38887, 10813, 233, 128, 31752, 321, 231, 10813, 230, 226, 13198, 15107, 225),
        *(121, 10813, 225, 132),
    ],
    "I'm you're we'll they'd it's DON'T I'VE": [
        *(57, 5248, 346, 2316, 392, 3060, 502, 6737, 357, 506, 422, 2154, 23, 68, 339, 23),
        18525,
    ],
    "<|im_start|>user\nhi<|im_end|>\n": [1, 4093, 198, 6004, 2, 198],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pretrained parts as they are: what was trained is left out."""
    out = tmp_path_factory.mktemp("demo") / "checkpoint"
    untrained = replace(DEMO, deltas=out / "none")
    return build_checkpoint(untrained, out, cache_dir=default_cache_dir(), report=print)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return {
        part.package: unpack(part, folder, cache_dir=default_cache_dir(), report=print)
        for part in (LANGUAGE_MODEL, VISION_TOWER)
    }


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def decoder(unpacked: dict[str, Path]) -> torch.nn.Module:
    """The language model as Transformers itself reads the GGUF file."""
    file = unpacked[LANGUAGE_MODEL.package]
    return AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()


def greedy(model: torch.nn.Module, inputs: dict[str, torch.Tensor], tokens: int) -> list[int]:
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def ask(processor, question: str) -> dict[str, torch.Tensor]:
    messages = [{"role": "user", "content": question}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor(text=prompt, return_tensors="pt")


def test_text_prompt_about_france_is_answered_with_paris(checkpoint: Path, model) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint)
    answer = greedy(model, ask(processor, "What is the capital of France?"), 20)
    assert "Paris" in processor.decode(answer)
    assert answer[-1] == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize("question", ["Who wrote Hamlet?", "Give me a tip for sleeping well."])
def test_greedy_answers_are_those_of_the_language_model_alone(
    checkpoint: Path, model, decoder, question: str
) -> None:
    inputs = ask(AutoProcessor.from_pretrained(checkpoint), question)
    answer = greedy(model, inputs, 24)
    # One pass over prompt and answer shows what the decoder would have said at every step.
    whole = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
    with torch.no_grad():
        choices = decoder(whole).logits[0].argmax(dim=-1).tolist()
    assert choices[-len(answer) - 1 : -1] == answer


def test_stored_decoder_equals_what_transformers_own_loader_reads(
    checkpoint: Path, decoder
) -> None:
    prefix = "language_model."
    stored = load_file(checkpoint / "model.safetensors")
    ours = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
    theirs = decoder.state_dict()
    assert theirs.keys() - ours.keys() == {"lm_head.weight"}
    for name, value in ours.items():
        # The table of embeddings has rows for the image placeholder and padding after theirs.
        assert torch.equal(value[: theirs[name].shape[0]], theirs[name]), name


def test_tower_features_equal_those_of_the_onnx_backbone(
    unpacked: dict[str, Path], tmp_path: Path
) -> None:
    onnx_file = unpacked[VISION_TOWER.package]
    # At the published table of 37 x 37, so that both sides interpolate to 224 pixels at run time.
    tower = read_vision_tower(onnx_file, image_size=518)
    save_file(tower.state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tower.config.save_pretrained(tmp_path)
    ours = Dinov2Model.from_pretrained(tmp_path).eval()
    wanted = {
        "last_hidden_state": "/backbone/layernorm/Add_1_output_0",
        "layer before the last": "/backbone/encoder/layer.10/Add_1_output_0",
    }
    network = onnx.load(onnx_file)
    network.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in wanted.values()
    )
    session = onnxruntime.InferenceSession(network.SerializeToString())
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    final, penultimate = session.run([*wanted.values()], {"input_image": pixels.numpy()})
    with torch.no_grad():
        found = ours(pixels, output_hidden_states=True)
    np.testing.assert_allclose(found.last_hidden_state, final, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found.hidden_states[-2], penultimate, rtol=0, atol=2e-5)


def test_stored_positions_give_the_features_of_the_uninterpolated_table(
    checkpoint: Path, unpacked: dict[str, Path]
) -> None:
    full = read_vision_tower(unpacked[VISION_TOWER.package], image_size=518)
    embeddings = Dinov2Model(full.config).embeddings
    table = full.state["embeddings.position_embeddings"]
    embeddings.position_embeddings = torch.nn.Parameter(table)
    expected = embeddings.interpolate_pos_encoding(torch.zeros(1, 577, 384), 336, 336)
    stored = load_file(checkpoint / "model.safetensors")
    found = stored["vision_tower.embeddings.position_embeddings"]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("text", LLAMA_CPP_IDS)
def test_tokens_equal_those_of_llama_cpp(checkpoint: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    assert tokenizer.encode(text).ids == LLAMA_CPP_IDS[text]
    assert tokenizer.decode(LLAMA_CPP_IDS[text], skip_special_tokens=False) == text


def test_image_features_have_about_the_size_of_token_embeddings(
    checkpoint: Path, model, tmp_path: Path
) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint)
    with Image.open(demo_photo(tmp_path)) as photo:
        pixels = processor.image_processor(photo, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = model.get_image_features(pixels).pooler_output[0]
        embeddings = model.get_input_embeddings().weight
        ratio = features.square().mean().sqrt() / embeddings.square().mean().sqrt()
    assert features.shape == (576, 576)
    assert 0.7 < float(ratio) < 1.4


@pytest.mark.skipif(not DELTAS.is_file(), reason="nothing is trained yet")
def test_shipped_deltas_change_every_projection_by_their_product(
    checkpoint: Path, tmp_path: Path
) -> None:
    trained = build_demo_checkpoint(
        tmp_path / "trained", cache_dir=default_cache_dir(), report=print
    )
    before = load_file(checkpoint / "model.safetensors")
    after = load_file(trained / "model.safetensors")
    deltas, _ = read_deltas(DELTAS)
    assert len(deltas.lora) == 30 * 7
    for (layer, projection), update in deltas.lora.items():
        block = "mlp" if projection in MLP else "self_attn"
        name = f"language_model.model.layers.{layer}.{block}.{projection}.weight"
        expected = deltas.lora_scale * update.b.double() @ update.a.double()
        np.testing.assert_allclose((after[name] - before[name]).double(), expected, atol=1e-5)


@pytest.mark.parametrize("name", SETS)
def test_real_packages_have_every_image_a_set_asks_about(name: str) -> None:
    source = SETS[name]
    archive = fetch(source.part, cache_dir=default_cache_dir(), report=print)
    samples = source.samples(archive, images=3)
    draw = source.drawer(archive)
    for number in {sample.image for sample in samples[:20]}:
        image = draw(number)
        assert image.size == (336, 336)
        assert len(image.getcolors(336 * 336)) > 20  # no empty canvas


def test_easy_vqa_has_the_published_number_of_questions() -> None:
    test = SETS["easy-vqa-test"]
    archive = fetch(test.part, cache_dir=default_cache_dir(), report=print)
    samples = test.samples(archive)
    assert len(samples) == 9673
    assert sum(sample.question.kind == "yes/no" for sample in samples) == 7136
    assert len({sample.image for sample in samples}) == 1000
