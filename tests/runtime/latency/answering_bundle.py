"""The hand-made bundle of `tests/runtime/conftest.py` with eyes and a tongue: it can be asked.

A vision stage that gives each of 8 x 8 patches a mix of its colours, a tokenizer of words, and
pruning points of any rule. Nothing of it needs PyTorch, so sessions open in milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from tests.runtime.conftest import (
    HIDDEN,
    IMAGE_TOKEN,
    VOCABULARY,
    GraphWriter,
    write_hand_made,
    write_manifest,
)
from tokenizers import Tokenizer, models, pre_tokenizers

from atp_runtime.atp import FEATURES
from atp_runtime.atp import HIDDEN as MODULE_WIDTH
from atp_runtime.manifest import Manifest, Stage, TensorSpec, VisionModel, read_manifest
from atp_runtime.pruning_point import PruningPoint

SIDE = 8
VISUAL = SIDE * SIDE
WORDS = ("<unk>", "</s>", "what", "where", "which", "is", "it", "red", "blue", "<image>", "of")
assert WORDS[IMAGE_TOKEN] == "<image>"
assert len(WORDS) == VOCABULARY
PRUNED_LAYERS = (2, 3)
_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}"
)


def write_answering(
    root: Path, rule: str = "top_k", parameters: Sequence[dict[str, object]] = ()
) -> Path:
    """Writes the bundle.

    Args:
        root: A directory to make.
        rule: Of both points; "" for none.
        parameters: Of each point.
    """
    write_hand_made(root)
    _write_processor(root / "processor")
    manifest = read_manifest(root)
    stages = [_write_vision(root), *manifest.stages]
    points = dict(zip(PRUNED_LAYERS, parameters or ({"keep": 16}, {"keep": 4}), strict=True))
    for at, stage in enumerate(stages):
        if stage.pruning:
            layer = stage.layers[1]
            prefix = f"points.{PRUNED_LAYERS.index(layer)}." if rule == "atp" else None
            point = PruningPoint(layer, rule, points[layer], prefix)
            stages[at] = replace(stage, pruning=point)
    vision = VisionModel((SIDE, SIDE), (SIDE, SIDE), VISUAL, 0, 0, IMAGE_TOKEN)
    weights = None
    if rule == "atp":
        weights = "pruning/atp_modules.safetensors"
        (root / "pruning").mkdir()
        save_file(module_tensors(), root / weights)
    changed: Manifest = replace(
        manifest, stages=tuple(stages), vision=vision, pruning_weights=weights
    )
    write_manifest(root, changed)
    return root


def module_tensors() -> dict[str, np.ndarray]:
    """Two modules whose thresholds differ a little from image to image."""
    random, tensors = np.random.default_rng(3), {}
    for point in range(len(PRUNED_LAYERS)):
        shapes = {"shared": (MODULE_WIDTH, FEATURES), "redundancy": (1, MODULE_WIDTH)}
        for name, shape in {**shapes, "spatial": (1, MODULE_WIDTH)}.items():
            weight = random.normal(size=shape) * 0.2
            tensors[f"points.{point}.{name}.weight"] = weight.astype(np.float32)
            bias = np.zeros(shape[0]) + (0.8 if name == "spatial" else 0.0)
            tensors[f"points.{point}.{name}.bias"] = bias.astype(np.float32)
    return tensors


def write_photos(directory: Path, count: int) -> list[Path]:
    """Photos of random blocks of colour."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        colours = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        paths.append(directory / f"photo-{number}.png")
        Image.fromarray(colours).resize((SIDE * 2, SIDE * 2), Image.Resampling.BICUBIC).save(
            paths[-1]
        )
    return paths


def write_questions(directory: Path, count: int) -> Path:
    """Questions in LLaVA's format about as many photos, with answers."""
    photos = write_photos(directory, count)
    questions = ("what is it", "where is it", "which is red", "which of it is blue")
    records = [
        {
            "id": str(number),
            "image": photo.name,
            "conversations": [
                {"from": "human", "value": f"<image>\n{questions[number % len(questions)]}"},
                {"from": "gpt", "value": "red"},
            ],
        }
        for number, photo in enumerate(photos)
    ]
    path = directory / "questions.json"
    path.write_text(json.dumps(records))
    return path


def _write_vision(root: Path) -> Stage:
    inputs = (TensorSpec("pixel_values", "float32", ("images", 3, SIDE, SIDE)),)
    outputs = (TensorSpec("image_features", "float32", ("images", VISUAL, HIDDEN)),)
    graph = GraphWriter()
    colours = graph.add("Reshape", "pixel_values", graph.integers(-1, 3, VISUAL))
    colours = graph.add("Transpose", colours, perm=[0, 2, 1])
    mix = np.random.default_rng(8).normal(size=(3, HIDDEN)).astype(np.float32)
    graph.add("MatMul", colours, graph.constant(mix), output="image_features")
    graph.write(root / "onnx/vision.onnx", inputs, outputs)
    return Stage("vision", "vision", "onnx/vision.onnx", (), inputs, outputs)


def _write_processor(directory: Path) -> None:
    directory.mkdir()
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([WORDS[1], WORDS[IMAGE_TOKEN]])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": WORDS[1]}))
    (directory / "chat_template.jinja").write_text(_TEMPLATE)
    processor = {"image_token": WORDS[IMAGE_TOKEN]}
    (directory / "processor_config.json").write_text(json.dumps(processor))
    images = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": SIDE},
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(images))
