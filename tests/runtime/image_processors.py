"""Image processors as checkpoints publish them, read by us and by Transformers."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor

from atp_runtime.preprocess import ImageProcessor, PreprocessedImage

# The fields as the checkpoints publish them.
CLIP_336 = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "LlavaProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}
CLIP_336_OLD = {
    "feature_extractor_type": "CLIPFeatureExtractor",
    "crop_size": 336,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 336,
}
SIGLIP_384 = {
    "image_processor_type": "SiglipImageProcessor",
    "do_convert_rgb": None,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "size": {"height": 384, "width": 384},
}
DINOV2 = {
    "image_processor_type": "BitImageProcessor",
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size": {"shortest_edge": 256},
}
LLAVA_PAD = {
    "image_processor_type": "LlavaImageProcessor",
    "do_pad": True,
    "crop_size": {"height": 336, "width": 336},
    "size": {"shortest_edge": 336},
}
PUBLISHED = {
    "clip-336": CLIP_336,
    "clip-336-old": CLIP_336_OLD,
    "siglip-384": SIGLIP_384,
    "dinov2": DINOV2,
    "llava-pad": LLAVA_PAD,
}


def write_config(fields: Any, directory: Path, name: str = "preprocessor_config.json") -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


def reference(fields: dict[str, Any], image: Image.Image, directory: Path) -> np.ndarray:
    """float32 [channel, height, width] of Transformers' own processor for these fields."""
    write_config(fields, directory / "reference")
    processor = AutoImageProcessor.from_pretrained(directory / "reference", backend="pil")
    assert processor.backend == "pil"
    values = processor(image, return_tensors="np")["pixel_values"][0]
    return values.astype(np.float32)


def ours(fields: dict[str, Any], image: Image.Image, directory: Path) -> PreprocessedImage:
    return ImageProcessor.from_file(write_config(fields, directory / "ours"))(image)


def photo_file(name: str) -> Path:
    """A file of the sample photos that are part of scikit-image's wheel."""
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "data" / name


def resized_photo(width: int, height: int) -> Image.Image:
    return Image.open(photo_file("chelsea.png")).convert("RGB").resize((width, height))


@st.composite
def processor_fields(draw: st.DrawFn) -> dict[str, Any]:
    """Any chain of padding, resizing and cropping, in plain 8-bit values."""
    edge = st.integers(8, 70)
    size = draw(
        st.one_of(
            st.fixed_dictionaries({"shortest_edge": edge}),
            st.fixed_dictionaries({"height": edge, "width": edge}),
            st.fixed_dictionaries({"shortest_edge": edge, "longest_edge": edge}),
            st.fixed_dictionaries({"max_height": edge, "max_width": edge}),
        )
    )
    return {
        "image_processor_type": draw(
            st.sampled_from(["LlavaImageProcessor", "CLIPImageProcessor"])
        ),
        "do_pad": draw(st.booleans()),
        "do_resize": draw(st.booleans()),
        "size": size,
        "do_center_crop": draw(st.booleans()),
        "crop_size": {"height": draw(edge), "width": draw(edge)},
        "do_rescale": False,
        "do_normalize": False,
    }


# Not so thin that nothing would be left of a side when the other becomes 8 pixels.
photo_sizes = st.tuples(st.integers(16, 120), st.integers(16, 120))
