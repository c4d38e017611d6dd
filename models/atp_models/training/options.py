"""What a training run is told, apart from where its files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODES = ("modules", "projector", "lora", "full")
DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class PruningOptions:
    """What replaces the checkpoint's `pruning_config.json`; None leaves a field as it is there.

    Attributes:
        layers: Decoder layers before which tokens are dropped.
        target_tokens: N_target, averaged over all decoder layers, per image.
        min_keep: At least so many tokens of an image stay at every point.
        lambda_target: Weight of the distance to the target.
        lambda_atp: Weight of the token count.
        temperature_start: Of the soft mask.
        temperature_end: Likewise.
        redundancy: What S_red is made of, for ablations; see `PruningConfig`.
        strides: Of the sampling grids, for ablations; none turns the spatial criterion off.
    """

    layers: tuple[int, ...] | None = None
    target_tokens: int | None = None
    min_keep: int | None = None
    lambda_target: float | None = None
    lambda_atp: float | None = None
    temperature_start: float | None = None
    temperature_end: float | None = None
    redundancy: str | None = None
    strides: tuple[int, ...] | None = None


@dataclass(frozen=True)
class DataOptions:
    """Which conversations, and how they become rows.

    Attributes:
        file: A JSON list or JSON Lines in LLaVA's format.
        images: The folder that image paths start from; None is the file's own.
        validation: Share of the records kept for validation, split by image.
        validation_limit: At most so many are.
        validation_file: Records to validate with instead.
        max_length: Rows are cut to so many tokens, between turns.
        pack: Conversations about the same images per row, apart from the first pruning point on.
        visual_tokens_stride: Each image enters with the tokens of a uniform grid, at a random
            offset; its stride is one of these, at random. 1 is all tokens. A target of tokens
            means the same share of those that enter.
        cache_features: Folder for the vision tower's features; None computes them each time.
    """

    file: Path
    images: Path | None = None
    validation: float = 0.02
    validation_limit: int = 500
    validation_file: Path | None = None
    max_length: int = 2048
    pack: int = 1
    visual_tokens_stride: tuple[int, ...] = (1,)
    cache_features: Path | None = None


@dataclass(frozen=True)
class TrainingOptions:
    """How the weights are learnt.

    Attributes:
        mode: Which weights: "modules" alone; "projector", that and modules; "lora", an adapter
            on the decoder's linear layers, projector and modules; "full", decoder, projector and
            modules.
        dense: No pruning; modules are not trained.
        freeze_modules: They stay as they are, and so does what they read: projector, the layers
            before the first point, queries and keys of the layer before each. Tokens are dropped
            as at inference; what learns is the rest of what `mode` says.
        unpruned: Share of the batches of `freeze_modules` from which no token is dropped, so that
            the decoder also goes on learning to answer from all of them.
        fit_thresholds: No gradients; see `atp_models.training.threshold_fit`.
        samples: For `fit_thresholds`.
        keep: Likewise: tokens to keep at each point; None plans a fall by equal factors.
        learning_rate: Of decoder, adapter and projector; None is 2e-5 for "full", else 2e-4.
        modules_learning_rate: Of the ATP modules.
        lora_rank: Of the adapter; its alpha is twice the rank.
        epochs: Passes over the data.
        max_steps: Optimiser steps, instead of epochs.
        batch_size: Rows per step and process.
        accumulate: Batches per optimiser step.
        drop_below: See `SoftDecoder`.
        dtype: Of weights that are not trained; "auto" is bfloat16 on CUDA, else float32.
        seed: Of everything random.
        arguments: Anything else for `TrainingArguments`.
    """

    mode: str = "modules"
    dense: bool = False
    freeze_modules: bool = False
    unpruned: float = 0.0
    fit_thresholds: bool = False
    samples: int = 128
    keep: tuple[int, ...] | None = None
    learning_rate: float | None = None
    modules_learning_rate: float = 1e-3
    lora_rank: int = 16
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 8
    accumulate: int = 1
    drop_below: float = 1e-4
    dtype: str = "auto"
    seed: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)
