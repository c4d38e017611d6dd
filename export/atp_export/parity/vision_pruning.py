"""What both sides show their decoders of a prompt's images where a rule thins them out.

Which features stay, and which are averaged with which shares, is the bundle's choice, taken over
by the reference: rounding may tip a choice, and whether a rule chooses as its paper has it is what
its tests are for. What it decides by is compared stage by stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from atp_export.parity.measures import Tolerance, compare
from atp_export.parity.recording import BundleRun, Seen
from atp_export.parity.report import Check
from atp_export.parity.samples import Prompt
from atp_export.parity.tower_merging import merged_in, told_to
from atp_models.reference import LlavaReference
from atp_runtime.manifest import Manifest
from atp_runtime.reduction import Reduction

AGAINST = "PyTorch, same tokens kept"


@dataclass(frozen=True, eq=False)
class Shown:
    """A prompt as both sides' decoders get it.

    Attributes:
        seen: The bundle's.
        features: The reference's image features [1, tokens, hidden]; None without images.
    """

    seen: Seen
    features: torch.Tensor | None

    @property
    def prompt(self) -> Prompt:
        """With as many placeholders as tokens are left."""
        return self.seen.prompt


def show(run: BundleRun, reference: LlavaReference, prompt: Prompt) -> Shown:
    """Looks at a prompt's images with both."""
    seen = run.see(prompt)
    if prompt.pixel_values is None:
        return Shown(seen, None)
    manifest = run.manifest
    outputs = {name: np.stack([it[name] for it in seen.given]) for name in seen.given[0]}
    pixels, merged = torch.from_numpy(prompt.pixel_values), merged_in(manifest, outputs)
    step = reference.see(pixels, merged, told_to(manifest))
    source = step.features if manifest.projector is None else step.selected
    left = [_left(it, image) for it, image in zip(seen.reductions, source, strict=True)]
    features = torch.cat(left).unsqueeze(0)
    return Shown(seen, features if manifest.projector is None else reference.project(features))


def check_shown(shown: Shown, manifest: Manifest, tolerance: Tolerance) -> Check:
    """The image tokens that a bundle with a rule gives its decoder against the reference's."""
    assert shown.features is not None  # noqa: S101 - asked of prompts with images
    images = shown.seen.images
    found = np.concatenate([image.values for image in images])[np.newaxis]
    measure = compare("image_features", "prefill", found, shown.features.numpy(), tolerance)
    left = ", ".join(str(len(image)) for image in images)
    detail = f"{shown.prompt.name}, tokens {manifest.vision.tokens} → {left}"
    return Check.of("reduced", "end to end", AGAINST, detail, [measure])


def _left(reduction: Reduction, features: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(reduction.of(features.numpy()))
