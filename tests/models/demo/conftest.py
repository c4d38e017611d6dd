"""Tiny parts in the formats of the real ones: a GGUF file and an ONNX file, in wheels.

And tiny artwork: squares of one colour in the place of emoji.
"""

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Dinov2Config, Dinov2Model

from atp_models.atp import AtpModules
from atp_models.demo.deltas import PROJECTOR, Deltas, LowRank
from atp_models.demo.parts import Part
from atp_models.demo.recipe import Recipe, Training
from atp_models.demo.scenes.artwork import Artwork
from atp_models.demo.scenes.vocabulary import PICTURES
from atp_models.pruning_config import PruningConfig

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ Ġ", "h e", "l l", "he ll", "hell o", "Ġ hello", "i n", "in t"]
TEXT_WIDTH, TEXT_LAYERS, TEXT_FFN = 64, 2, 96
HEADS, KV_HEADS = 4, 2


def write_tiny_gguf(path: Path, *, splitting: str = "smollm", architecture: str = "llama") -> Path:
    """A two-layer LLaMA with random weights, its embeddings in 8 bits and tied."""
    tokens = [*CONTROL, *sorted(ByteLevel.alphabet()), *(m.replace(" ", "") for m in MERGES)]
    kinds = [gguf.TokenType.CONTROL] * len(CONTROL)
    kinds += [gguf.TokenType.NORMAL] * (len(tokens) - len(CONTROL))
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(TEXT_LAYERS)
    writer.add_context_length(1024)
    writer.add_embedding_length(TEXT_WIDTH)
    writer.add_feed_forward_length(TEXT_FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100_000.0)
    writer.add_rope_dimension_count(TEXT_WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    _add_tensors(writer, len(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tensors(writer: gguf.GGUFWriter, tokens: int) -> None:
    random = np.random.RandomState(0)

    def values(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.1).astype(np.float32)

    kind = gguf.GGMLQuantizationType.Q8_0
    embeddings = gguf.quants.quantize(values(tokens, TEXT_WIDTH), kind)
    writer.add_tensor("token_embd.weight", embeddings, raw_dtype=kind)
    kv_width = TEXT_WIDTH * KV_HEADS // HEADS
    shapes = {
        "attn_norm": (TEXT_WIDTH,),
        "attn_q": (TEXT_WIDTH, TEXT_WIDTH),
        "attn_k": (kv_width, TEXT_WIDTH),
        "attn_v": (kv_width, TEXT_WIDTH),
        "attn_output": (TEXT_WIDTH, TEXT_WIDTH),
        "ffn_norm": (TEXT_WIDTH,),
        "ffn_gate": (TEXT_FFN, TEXT_WIDTH),
        "ffn_up": (TEXT_FFN, TEXT_WIDTH),
        "ffn_down": (TEXT_WIDTH, TEXT_FFN),
    }
    for layer in range(TEXT_LAYERS):
        for role, shape in shapes.items():
            writer.add_tensor(f"blk.{layer}.{role}.weight", values(*shape))
    writer.add_tensor("output_norm.weight", values(TEXT_WIDTH))


@dataclass(frozen=True)
class TinyTower:
    """An ONNX file, and the parameters it was written from under their checkpoint names."""

    onnx_file: Path
    state: dict[str, torch.Tensor]


def write_tiny_tower(directory: Path) -> TinyTower:
    """A two-layer DINOv2 with a 5 x 5 table of positions, named as TorchScript exports name it."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=70,
        use_mask_token=False,
    )
    Dinov2Model(config).save_pretrained(directory / "tower")
    state = load_file(directory / "tower" / "model.safetensors")
    initialisers: dict[str, torch.Tensor] = {}
    nodes = []
    for name, value in state.items():
        if name.endswith("position_embeddings"):
            initialisers |= {"onnx::Concat_1": value[:, :1], "onnx::Reshape_2": value[:, 1:]}
            at = "/backbone/embeddings/"
            nodes.append(helper.make_node("Reshape", ["onnx::Reshape_2", "s"], ["r"], f"{at}R"))
            nodes.append(
                helper.make_node("Concat", ["onnx::Concat_1", "r"], ["c"], f"{at}C", axis=1)
            )
        elif name.endswith(".weight") and value.ndim == 2:
            folded = f"onnx::MatMul_{len(nodes) + 10}"
            initialisers[folded] = value.T
            module = name.removesuffix(".weight").replace(".", "/")
            nodes.append(
                helper.make_node("MatMul", ["x", folded], [name], f"/backbone/{module}/MatMul")
            )
        else:
            initialisers[f"backbone.{name}"] = value
    nodes.append(helper.make_node("MatMul", ["q", "k"], ["s"], "/backbone/encoder/layer.0/MatMul"))
    initialisers["decoder.bias"] = torch.zeros(3)
    onnx_file = directory / "tiny.onnx"
    onnx.save(_model(nodes, initialisers), onnx_file)
    return TinyTower(onnx_file, state)


def _model(nodes: list[onnx.NodeProto], initialisers: dict[str, torch.Tensor]) -> onnx.ModelProto:
    protos = [
        numpy_helper.from_array(np.ascontiguousarray(value.numpy()), name)
        for name, value in initialisers.items()
    ]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(nodes, "tiny", [image], [], protos))


@dataclass(frozen=True)
class TinyParts:
    """A recipe whose wheels lie in a cache."""

    recipe: Recipe
    cache_dir: Path


def write_wheel(directory: Path, package: str, member: str, content: bytes) -> Part:
    """Write a wheel that pip accepts, holding one file, and describe it as a part."""
    wheel = directory / f"{package.replace('-', '_')}-1.0-py3-none-any.whl"
    info = f"{package.replace('-', '_')}-1.0.dist-info"
    files = {
        member: content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return Part(
        role="a test",
        registry="pypi",
        package=package,
        version="1.0",
        archive=wheel.name,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member=member,
        size=wheel.stat().st_size + len(content),
        licence="MIT",
        note="made for a test",
    )


def write_tarball(directory: Path, package: str, files: dict[str, bytes]) -> Part:
    """Write a package as npm packs it, and describe it as a part that is used as a whole."""
    archive = directory / f"{package.removeprefix('@').replace('/', '-')}-1.0.0.tgz"
    about = f'{{"name": "{package}", "version": "1.0.0"}}'.encode()
    with tarfile.open(archive, "w:gz") as tar:
        for name, data in {"package.json": about, **files}.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return Part(
        role="a test",
        registry="npm",
        package=package,
        version="1.0.0",
        archive=archive.name,
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        size=archive.stat().st_size,
        licence="MIT",
        note="made for a test",
    )


def tiny_trained(seed: int = 0) -> Deltas:
    """What a training of the tiny parts could leave, each value one that float16 has."""
    generator = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).half().float()

    widths = {"weight": (TEXT_WIDTH, TEXT_WIDTH), "bias": (TEXT_WIDTH,)}
    config = PruningConfig(layers=(1,), lambda_sample=2.5, target_tokens=88)
    return Deltas(
        projector={name: values(*widths[name.rpartition(".")[2]]) for name in PROJECTOR},
        lora={
            (0, "q_proj"): LowRank(values(2, TEXT_WIDTH), values(TEXT_WIDTH, 2)),
            (1, "down_proj"): LowRank(values(3, TEXT_FFN), values(TEXT_WIDTH, 3)),
        },
        lora_scale=0.5,
        modules=AtpModules(config).initialise(seed + 1),
    )


TINY_TRAINING = Training(recipe=1, seed=7, provenance="made for a test")


def colour_of(number: int) -> tuple[int, int, int]:
    """A vivid colour that no background has, another one for each number below 100."""
    return 255, number * 2, 0


@pytest.fixture
def tiny_parts(tmp_path: Path) -> TinyParts:
    source = tmp_path / "source"
    cache = tmp_path / "cache"
    source.mkdir()
    cache.mkdir()
    gguf_file = write_tiny_gguf(source / "tiny.gguf")
    tower = write_tiny_tower(source)
    language = write_wheel(cache, "tiny-llm", "tiny_llm/tiny.gguf", gguf_file.read_bytes())
    vision = write_wheel(cache, "tiny-vit", "tiny_vit/tiny.onnx", tower.onnx_file.read_bytes())
    return TinyParts(Recipe(1, language, vision, tmp_path / "deltas.safetensors"), cache)


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(write_tiny_gguf(tmp_path / "tiny.gguf"))


@pytest.fixture
def tiny_tower(tmp_path: Path) -> TinyTower:
    return write_tiny_tower(tmp_path)


@pytest.fixture
def make_gguf(tmp_path: Path) -> Callable[..., gguf.GGUFReader]:
    return lambda **kw: gguf.GGUFReader(write_tiny_gguf(tmp_path / "made.gguf", **kw))


@pytest.fixture
def make_wheel() -> Callable[..., Part]:
    return write_wheel


@pytest.fixture
def trained() -> Deltas:
    return tiny_trained()


@pytest.fixture
def training() -> Training:
    return TINY_TRAINING


@pytest.fixture
def make_tarball() -> Callable[..., Part]:
    return write_tarball


@pytest.fixture(scope="session")
def square_artwork() -> Artwork:
    """Every picture a square of its own colour: see `colour_of`."""
    return Artwork(
        {
            picture.code: Image.new("RGBA", (8, 8), (*colour_of(number), 255))
            for number, picture in enumerate(PICTURES)
        }
    )
