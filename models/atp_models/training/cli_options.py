"""The options of `atp-train`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atp_models.training.options import DTYPES, MODES, DataOptions, TrainingOptions
from atp_runtime.cli.command import CommandParser, add_output_options

NAME = "atp-train"


def train_parser() -> argparse.ArgumentParser:
    """The parser of `atp-train`."""
    parser = CommandParser(
        prog=NAME,
        description="Train ATP pruning modules, and the LLaVA around them, on conversations in "
        "LLaVA's format. Interrupted, it resumes when run again.",
        epilog="Several GPUs: accelerate launch -m atp_models.training with the same arguments. "
        "Exit codes: 0 done, 1 the loss went astray, 2 wrong input, 3 the machine lacks "
        "something, 130 interrupted.",
    )
    parser.add_argument("checkpoint", type=Path, help="a Hugging Face LLaVA directory")
    parser.add_argument("data", type=Path, help="conversations: a JSON list or JSON Lines")
    parser.add_argument("out", type=Path, help="the directory to make")
    training = parser.add_argument_group("training")
    _add_modes(training)
    _add_learning(training)
    _add_pruning(parser.add_argument_group("pruning (default: pruning_config.json)"))
    _add_data(parser.add_argument_group("data"))
    add_output_options(parser)
    return parser


def _add_modes(group: Any) -> None:
    defaults = TrainingOptions()
    group.add_argument(
        "--mode",
        choices=MODES,
        default=defaults.mode,
        help="what learns: ATP modules alone; also the projector; also a LoRA on the decoder; or "
        "the whole decoder (default: modules)",
    )
    group.add_argument("--dense", action="store_true", help="train without any pruning")
    group.add_argument(
        "--freeze-modules",
        action="store_true",
        help="leave the ATP modules and what they read as they are, and drop tokens as inference "
        "does: the rest of the decoder learns to answer from what is left, several times faster",
    )
    group.add_argument(
        "--unpruned",
        type=_share,
        default=defaults.unpruned,
        metavar="X",
        help="for --freeze-modules: share of the batches that keep all tokens, for a checkpoint "
        "that answers with and without pruning (default: %(default)s)",
    )
    group.add_argument(
        "--fit-thresholds",
        action="store_true",
        help="no gradients: fit the thresholds to the token target on --samples records",
    )
    group.add_argument(
        "--samples",
        type=_count,
        default=defaults.samples,
        metavar="N",
        help="for --fit-thresholds (default: %(default)s)",
    )
    group.add_argument(
        "--keep",
        type=_counts,
        metavar="N,N,...",
        help="for --fit-thresholds, instead of --target-tokens: tokens to keep at each point",
    )


def _add_learning(group: Any) -> None:
    defaults = TrainingOptions()
    group.add_argument(
        "--learning-rate",
        type=_positive,
        metavar="X",
        help="of decoder, LoRA and projector (default: 2e-5 for full, else 2e-4)",
    )
    group.add_argument(
        "--modules-learning-rate",
        type=_positive,
        default=defaults.modules_learning_rate,
        metavar="X",
        help="of the ATP modules (default: %(default)s)",
    )
    group.add_argument(
        "--lora-rank",
        type=_count,
        default=defaults.lora_rank,
        metavar="N",
        help="its alpha is twice the rank (default: %(default)s)",
    )
    group.add_argument(
        "--epochs",
        type=_positive,
        default=defaults.epochs,
        metavar="X",
        help="passes over the data (default: %(default)s)",
    )
    group.add_argument("--max-steps", type=_count, metavar="N", help="instead of --epochs")
    group.add_argument(
        "--batch-size",
        type=_count,
        default=defaults.batch_size,
        metavar="N",
        help="rows per step and process (default: %(default)s)",
    )
    group.add_argument(
        "--accumulate",
        type=_count,
        default=defaults.accumulate,
        metavar="N",
        help="batches per optimiser step (default: %(default)s)",
    )
    group.add_argument(
        "--drop-below",
        type=_share,
        default=defaults.drop_below,
        metavar="X",
        help="drop visual tokens whose mask is fainter; 0 drops none (default: %(default)s)",
    )
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default=defaults.dtype,
        help="of weights that do not learn (default: bfloat16 on CUDA, else float32)",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=defaults.seed,
        metavar="N",
        help="of order, adapters and the validation split (default: %(default)s)",
    )
    group.add_argument(
        "--training-arguments",
        type=Path,
        metavar="FILE",
        help="JSON or YAML with anything else for Transformers' TrainingArguments",
    )


def _add_pruning(group: Any) -> None:
    group.add_argument(
        "--target-tokens", type=_count, metavar="N", help="visual tokens, averaged over all layers"
    )
    group.add_argument(
        "--prune-at",
        type=_layers,
        metavar="4,14,24",
        help="layers before which tokens are dropped (else: 12.5, 43.75 and 75 %% of the depth)",
    )
    group.add_argument(
        "--min-keep", type=_count, metavar="N", help="tokens of an image that stay (else: 4)"
    )
    group.add_argument(
        "--lambda-target", type=_weight, metavar="X", help="of the distance to the target"
    )
    group.add_argument("--lambda-atp", type=_weight, metavar="X", help="of the token count")
    group.add_argument(
        "--temperature-start", type=_positive, metavar="T", help="of the soft mask, rising"
    )
    group.add_argument("--temperature-end", type=_positive, metavar="T", help="... up to this")
    group.add_argument(
        "--redundancy", choices=("both", "self", "cross", "none"), help="for ablations"
    )
    group.add_argument(
        "--no-spatial", action="store_true", help="for ablations: no spatial criterion"
    )


def _add_data(group: Any) -> None:
    defaults = DataOptions(Path())
    group.add_argument(
        "--images", type=Path, metavar="DIR", help="where image paths start (default: DATA's own)"
    )
    group.add_argument(
        "--validation",
        type=_share,
        default=defaults.validation,
        metavar="X",
        help="share of the records kept for validation, split by image (default: %(default)s)",
    )
    group.add_argument(
        "--validation-limit",
        type=_count,
        default=defaults.validation_limit,
        metavar="N",
        help="records at most (default: %(default)s)",
    )
    group.add_argument("--validation-data", type=Path, metavar="FILE", help="validate with these")
    group.add_argument(
        "--max-length",
        type=_count,
        default=defaults.max_length,
        metavar="N",
        help="tokens per row; longer conversations lose turns (default: %(default)s)",
    )
    group.add_argument(
        "--pack",
        type=_count,
        default=defaults.pack,
        metavar="N",
        help="conversations about the same image per row; they share the layers before the "
        "first pruning point, with --dense all (default: %(default)s)",
    )
    group.add_argument(
        "--visual-tokens-stride",
        type=_counts,
        default=defaults.visual_tokens_stride,
        metavar="N[,N...]",
        help="train on uniform grids of the visual tokens, which is faster, the target scaled "
        "alike; of several strides each image draws one (default: 1, all tokens)",
    )
    group.add_argument(
        "--cache-features",
        type=Path,
        metavar="DIR",
        help="keep the vision tower's features there, in float16",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _positive(text: str) -> float:
    return _number(text, lambda value: 0 < value < math.inf, "a number above 0")


def _weight(text: str) -> float:
    return _number(text, lambda value: 0 <= value < math.inf, "a number from 0 on")


def _share(text: str) -> float:
    return _number(text, lambda value: 0 <= value < 1, "a number from 0 up to 1")


def _number(text: str, fits: Callable[[float], bool], wanted: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not fits(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


def _layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        message = f"{text!r} is not a list of layer numbers such as 4,14,24"
        raise argparse.ArgumentTypeError(message) from error
