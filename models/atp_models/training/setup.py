"""What a run needs before its first step: records, network, datasets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainingArguments

from atp_models.atp import AtpModules
from atp_models.pruning_config import PruningConfig, read_pruning_config
from atp_models.training.dataset import Collator, ConversationDataset
from atp_models.training.feature_cache import fill_cache
from atp_models.training.loading import Processor, Source, load_llava, load_modules, load_processor
from atp_models.training.options import DataOptions, TrainingOptions
from atp_models.training.pictures import Pictures, PixelValues
from atp_models.training.progress import Progress
from atp_models.training.prompts import ConversationWriter
from atp_models.training.records import Record, read_records
from atp_models.training.soft_decoder import SoftDecoder
from atp_models.training.splitting import limited, split_records
from atp_runtime.errors import InputError


@dataclass(frozen=True)
class Splits:
    """The records of a run.

    Attributes:
        train: What is learnt.
        validation: What is evaluated, perhaps nothing.
        hashes: sha256 of the files they come from.
    """

    train: tuple[Record, ...]
    validation: tuple[Record, ...]
    hashes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """A checkpoint in memory.

    Attributes:
        decoder: What is trained.
        processor: Makes its inputs.
    """

    decoder: SoftDecoder
    processor: Processor


@dataclass(frozen=True, eq=False)
class Datasets:
    """The records as rows.

    Attributes:
        train: Packed if that was asked for.
        validation: One record a row; None without records.
        collator: For both.
    """

    train: ConversationDataset
    validation: ConversationDataset | None
    collator: Collator


def read_splits(options: DataOptions, *, seed: int) -> Splits:
    """Reads all records and divides them.

    Raises:
        InputError: Records cannot be used, or none is left to train on.
    """
    records = read_records(options.file, options.images)
    files, limit = [options.file], options.validation_limit
    if options.validation_file is not None:
        files.append(options.validation_file)
        kept = limited(read_records(options.validation_file, options.images), limit, seed)
        training = records
    else:
        training, kept = split_records(records, share=options.validation, limit=limit, seed=seed)
    if not training:
        raise InputError(
            f"all {len(records)} records of {options.file} were kept for validation",
            why="there is nothing left to train on.",
            fix="give more records, a smaller --validation, or --validation-data.",
        )
    hashes = tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return Splits(tuple(training), tuple(kept), hashes)


def load_network(source: Source, config: PruningConfig | None, options: TrainingOptions) -> Network:
    """Loads a checkpoint for training.

    Args:
        source: The checkpoint.
        config: Of the pruning; None trains without.
        options: Tell the dtype, and whether modules begin anew.
    """
    path = source.checkpoint.path
    llava = load_llava(path, _dtype(options))
    modules = None
    if config is not None and options.fit_thresholds:
        modules = AtpModules(config).initialise(options.seed)
    elif config is not None:
        modules = load_modules(path, config, read_pruning_config(path))
    decoder = SoftDecoder(llava, modules, source.grid, drop_below=options.drop_below)
    return Network(decoder, load_processor(path, llava))


def build_datasets(
    splits: Splits,
    network: Network,
    options: DataOptions,
    arguments: TrainingArguments,
    progress: Progress,
) -> Datasets:
    """Rows of the records; the feature cache is filled if one is wanted."""
    decoder, processor = network.decoder, network.processor
    features = len(decoder.grid)
    writer = ConversationWriter(
        processor.tokenizer,
        processor.template,
        image_token_id=decoder.llava.config.image_token_id,
        image_features=features,
        end_ids=processor.end_ids,
        max_length=options.max_length,
    )
    pictures = _pictures((*splits.train, *splits.validation), network, options, arguments, progress)
    train = ConversationDataset(splits.train, writer, pictures, pack_up_to=options.pack)
    validation = None
    if splits.validation:
        validation = ConversationDataset(splits.validation, writer, pictures)
    return Datasets(train, validation, Collator(features, pictures.kind))


def _pictures(
    records: Sequence[Record],
    network: Network,
    options: DataOptions,
    arguments: TrainingArguments,
    progress: Progress,
) -> Pictures:
    pixels = PixelValues(network.processor.image_processor)
    files: list[Path] = list(dict.fromkeys(image for it in records for image in it.images))
    if options.cache_features is None or not files:
        return pixels
    network.decoder.llava.model.vision_tower.to(arguments.device)
    with arguments.main_process_first(desc="vision features"):
        return fill_cache(
            options.cache_features,
            files,
            pixels=pixels,
            decoder=network.decoder,
            progress=progress,
        )


def _dtype(options: TrainingOptions) -> torch.dtype:
    """Of what is loaded; all that learns is float32 in any case."""
    if options.dtype != "auto":
        return torch.float32 if options.dtype == "float32" else torch.bfloat16
    half = torch.cuda.is_available() and options.mode != "full"
    return torch.bfloat16 if half else torch.float32
