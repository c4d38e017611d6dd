"""The whole course: data, warm-up, stages, and the deltas that the package carries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from atp_models.demo.build import build_checkpoint
from atp_models.demo.curriculum.low_rank import cut_to_rank, low_rank_deltas
from atp_models.demo.curriculum.methods import Cut, Scorers
from atp_models.demo.curriculum.patch_words import PatchLabels, PatchWords
from atp_models.demo.curriculum.scorer_lessons import teach_scorers
from atp_models.demo.curriculum.stages import (
    EASY,
    EASY_IMAGES,
    SCENES,
    SEED,
    SPLIT,
    STAGES,
    VALIDATION,
    Stage,
    write_stage_data,
    write_validation_data,
)
from atp_models.demo.curriculum.warmup import warm_up
from atp_models.demo.data.samples import IMAGES
from atp_models.demo.data.sets import write_data_set
from atp_models.demo.deltas import save_deltas
from atp_models.demo.recipe import DEMO, Recipe, Training
from atp_models.demo.scenes.layout import make_scene
from atp_models.training.checkpoint_writer import copy_checkpoint, staged
from atp_models.training.cli import main as atp_train
from atp_models.training.feature_cache import fill_cache
from atp_models.training.loading import Source
from atp_models.training.options import TrainingOptions
from atp_models.training.pictures import PixelValues
from atp_models.training.progress import Progress
from atp_models.training.setup import load_network
from atp_runtime.errors import CheckFailedError

RANK = 56
"""Of the deltas, 18 MB: that of the cut and of the LoRA behind it."""
_BASE, _WARM = "0-untrained", "0-warmed-up"
_PROJECTOR = "multi_modal_projector"


def train_demo(
    work: Path,
    deltas: Path,
    *,
    cache_dir: Path,
    report: Callable[[str], None],
    progress: Progress,
) -> dict[str, Any]:
    """Trains the demo's deltas; what an interrupted course has finished is not done again.

    Args:
        work: Gets data, features and checkpoints, about 10 GB.
        deltas: The file to write.
        cache_dir: Where downloaded packages are kept.
        report: Called with a line of text at every step.
        progress: Shows the vision features being computed.

    Returns:
        What there is to tell: the share of the change that the deltas keep.

    Raises:
        CheckFailedError: A stage failed; it has said why.
        InputError: See `write_data_set`.
        MachineError: A package, the network or disk space is missing.
    """
    untrained = Recipe(DEMO.version, DEMO.language_model, DEMO.vision_tower, work / "none")
    base = build_checkpoint(untrained, work / _BASE, cache_dir=cache_dir, report=report)
    for name, images in ((SCENES, None), (EASY, EASY_IMAGES), (VALIDATION, None)):
        write_data_set(
            name, work / name, scenes=images, questions=None, cache_dir=cache_dir, report=report
        )
    checkpoint = _warmed_up(base, work, report, progress)
    write_validation_data(work)
    for stage in STAGES:
        report(f"stage {stage.name}")
        if isinstance(stage.method, Scorers):
            checkpoint = teach_scorers(
                checkpoint, stage, work, dtype=_dtype(), report=report, progress=progress
            )
        elif isinstance(stage.method, Cut):
            rank, out = stage.method.rank, work / stage.name
            checkpoint = cut_to_rank(base, checkpoint, out, rank=rank, report=report)
        else:
            checkpoint = _train(stage, checkpoint, work)
    reduced = low_rank_deltas(base, checkpoint, rank=RANK, report=report)
    deltas.parent.mkdir(parents=True, exist_ok=True)
    provenance = f"just train-demo; stages {', '.join(stage.name for stage in STAGES)}"
    save_deltas(deltas, reduced.deltas, Training(DEMO.version, SEED, provenance))
    return {"deltas": str(deltas), "rank": RANK, "kept": reduced.kept}


def _train(stage: Stage, checkpoint: Path, work: Path) -> Path:
    words = stage.arguments(checkpoint, write_stage_data(stage, work), work)
    arguments = work / "arguments.json"
    # Validation runs all 576 tokens, question by question: once, when the stage ends.
    settings = {"bf16": _dtype() == "bfloat16", "eval_strategy": "no"}
    arguments.write_text(json.dumps(settings), encoding="utf-8")
    code = atp_train([*words, "--dtype", _dtype(), "--training-arguments", str(arguments)])
    if code:
        raise CheckFailedError(
            f"stage {stage.name} ended with exit code {code}",
            why="the stages after it begin with what it makes.",
            fix="see what it said; run the same command again to go on from there.",
        )
    return work / stage.name


def _dtype() -> str:
    """Of what is not trained, and of products: bfloat16 where the machine multiplies it."""
    half = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001
    return "bfloat16" if half else "float32"


def _warmed_up(base: Path, work: Path, report: Callable[[str], None], progress: Progress) -> Path:
    out = work / _WARM
    if out.is_dir():
        return out
    source = Source.open(base)
    network = load_network(
        source, None, TrainingOptions(mode="projector", dense=True, dtype=_dtype())
    )
    files = sorted((work / SCENES / IMAGES).iterdir())
    features = fill_cache(
        work / "features",
        files,
        pixels=PixelValues(network.processor.image_processor),
        decoder=network.decoder,
        progress=progress,
    )
    llava = network.decoder.llava
    words = PatchWords(
        llava.get_input_embeddings().weight.detach(),
        Tokenizer.from_file(str(base / "tokenizer.json")),
    )
    projector = llava.model.multi_modal_projector.float()
    scenes = [make_scene(SPLIT, int(file.stem)) for file in files]
    warm_up(
        projector,
        lambda number: features.stack([files[number]])[0],
        [PatchLabels.of(scene) for scene in scenes],
        words,
        seed=SEED,
        report=report,
    )
    state = projector.state_dict()
    changed = {f"model.{_PROJECTOR}.{name}": value for name, value in state.items()}
    with staged(out) as staging:
        copy_checkpoint(base, staging, changed)
    return out
