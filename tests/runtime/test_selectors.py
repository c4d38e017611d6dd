"""The rules of all pruning points of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.runtime.selection_prompts import PREFIX, module_tensors, photo, random_prompt, selector

from atp_runtime.atp import AtpWeights
from atp_runtime.errors import InputError
from atp_runtime.manifest import Embedding, Manifest, Provenance, Stage, TextModel, VisionModel
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import Selection, Selectors, keeps_all


def top_k(before_layer: int, keep: int) -> PruningPoint:
    return PruningPoint(before_layer, "top_k", {"keep": keep})


def test_each_point_is_asked_by_its_own_parameters() -> None:
    points = [top_k(4, 3), top_k(9, 1)]
    select = Selectors(points, {})
    scores = np.arange(6, dtype=np.float32)
    visual = photo(rows=2, columns=3)
    assert [int(select(p, scores, scores, True, visual).kept.sum()) for p in points] == [3, 1]


def test_a_missing_module_is_refused_when_the_bundle_is_opened() -> None:
    weights = {PREFIX: AtpWeights.from_tensors(module_tensors(0), PREFIX)}
    for prefix in ("points.1.", None):
        with pytest.raises(InputError, match=r"points\.0\."):
            Selectors([PruningPoint(4, "atp", {}, prefix)], weights)


def manifest(pruning_weights: str | None) -> Manifest:
    point = PruningPoint(1, "atp", {}, PREFIX)
    stages = (
        Stage("segment_0", "segment", "onnx/segment_0.onnx", (), (), (), (0, 1), point),
        Stage("segment_1", "segment", "onnx/segment_1.onnx", (), (), (), (1, 2)),
    )
    return Manifest(
        format="atp-bundle",
        schema_version=1,
        precision="fp32",
        dialect="portable",
        opset=20,
        text=TextModel(2, 8, 2, 2, 4, 16, 32, 64),
        vision=VisionModel((12, 12), (6, 6), 36, 0, 0, 31),
        embedding=Embedding("weights/embed_tokens.npy", "float32"),
        axes={},
        stages=stages,
        processor="processor",
        pruning_weights=pruning_weights,
        provenance=Provenance("model", "0", "atp-export", {}),
        files={},
    )


def test_a_bundle_s_points_find_their_modules_in_its_weights_file(tmp_path: Path) -> None:
    tensors = module_tensors(5)
    (tmp_path / "pruning").mkdir()
    save_file(tensors, tmp_path / "pruning" / "atp_modules.safetensors")
    bundle = manifest("pruning/atp_modules.safetensors")
    point = bundle.segments[0].pruning
    assert point is not None
    prompt = random_prompt(5)
    arguments = prompt.scores_self, prompt.scores_cross, prompt.has_text, prompt.visual
    found = Selectors.open(tmp_path, bundle)(point, *arguments)
    assert found.diagnostics == selector("atp", {}, tensors)(*arguments).diagnostics


def test_a_bundle_without_the_weights_its_rule_needs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no weights"):
        Selectors.open(tmp_path, manifest(None))


def test_rules_are_known_to_keep_all_when_none_of_them_ever_drops_a_token() -> None:
    def selectors(*rules: tuple[str, dict[str, Any]]) -> Selectors:
        points = [PruningPoint(at, name, given) for at, (name, given) in enumerate(rules)]
        return Selectors(points, {})

    assert keeps_all(selectors())
    assert keeps_all(selectors(("keep_all", {}), ("keep_all", {"min_keep": 3})))
    assert not keeps_all(selectors(("keep_all", {}), ("keep_all", {"max_keep": 3})))
    assert not keeps_all(selectors(("keep_all", {}), ("top_k", {"ratio": 1.0})))
    assert not keeps_all(lambda _point, _own, _cross, _text, visual: Selection(visual.row >= 0))
