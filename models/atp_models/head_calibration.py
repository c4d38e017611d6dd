"""`python -m atp_models.head_calibration`: which heads visual tokens need, found on samples.

YOPO's criterion (arXiv 2410.06169): a head is kept if its attention to visual keys over that to
text and system keys exceeds tau in more than 40 of 100 samples; the first two layers keep all.
Reconstructed: it is the attention of the tokens behind the last photo, the answer included.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atp_models.reference import LlavaReference
from atp_models.training.loading import Source, load_processor
from atp_models.training.pictures import PixelValues
from atp_models.training.prompts import ConversationWriter
from atp_models.training.records import Record, read_records
from atp_runtime.errors import AtpError, InputError

SHARE = 0.4
WHOLE_LAYERS = 2
"""The first layers, in which all heads are kept."""

Ratios = npt.NDArray[np.float64]
Heads = npt.NDArray[np.bool_]


def evidence(ratios: Ratios) -> Ratios:
    """The largest tau at which a head would just not be kept.

    Args:
        ratios: [samples, layers, heads], see `attention_ratios`.

    Returns:
        [layers, heads]: more than `SHARE` of the samples exceed whatever is below.
    """
    most = int(np.floor(SHARE * len(ratios)))
    found: Ratios = np.sort(ratios, axis=0)[::-1][most]
    return found


def kept_heads(ratios: Ratios, *, tau: float | None = None, keep: float | None = None) -> Heads:
    """Which heads are kept: bool [layers, heads].

    Args:
        ratios: [samples, layers, heads].
        tau: The threshold.
        keep: Instead of a threshold: heads per layer, on average over all layers. As many as that
            have the strongest evidence; the first two layers count with all of theirs.
    """
    found = evidence(ratios)
    layers, heads = found.shape
    kept = np.ones(found.shape, dtype=np.bool_)
    rest = found[WHOLE_LAYERS:]
    if tau is not None:
        kept[WHOLE_LAYERS:] = rest > tau
    elif keep is not None and rest.size:
        wanted = max(0, round(keep * layers) - heads * min(WHOLE_LAYERS, layers))
        order = np.argsort(-rest, axis=None, kind="stable")
        chosen = np.zeros(rest.size, dtype=np.bool_)
        chosen[order[:wanted]] = True
        kept[WHOLE_LAYERS:] = chosen.reshape(rest.shape)
    return kept


@torch.inference_mode()
def attention_ratios(reference: LlavaReference, ids: Tensor, pixel_values: Tensor) -> Ratios:
    """How much more the tokens behind the last photo attend to visual keys than to the others.

    Args:
        reference: The checkpoint.
        ids: int64 [tokens], a placeholder for each image feature.
        pixel_values: [images, 3, height, width].

    Returns:
        [layers, heads].
    """
    visual = ids == reference.model.config.image_token_id
    after = int(visual.nonzero()[-1]) + 1
    ratios: list[Tensor] = []

    def measure(_module: object, _inputs: object, outputs: tuple[Tensor, Tensor]) -> None:
        weights = outputs[1][0, :, after:].double()
        seen, others = weights[..., visual].sum((1, 2)), weights[..., ~visual].sum((1, 2))
        ratios.append(seen / others)

    layers = reference.model.model.language_model.layers
    hooks = [layer.self_attn.register_forward_hook(measure) for layer in layers]
    try:
        reference.dense().forward(ids, pixel_values)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(ratios).numpy()


def by_groups(ratios: Ratios, kv_heads: int) -> Ratios:
    """Means [samples, layers, kv_heads] of heads that share values: they are kept together."""
    samples, layers, heads = ratios.shape
    mean: Ratios = ratios.reshape(samples, layers, kv_heads, heads // kv_heads).mean(3)
    return mean


def main(words: list[str] | None = None) -> int:
    """Measures heads on samples and writes which are kept."""
    parser = argparse.ArgumentParser(prog="python -m atp_models.head_calibration")
    parser.add_argument("checkpoint", type=Path, help="a Hugging Face LLaVA directory")
    parser.add_argument("data", type=Path, help="conversations in LLaVA's format, with photos")
    parser.add_argument("out", type=Path, help=".npy file to write: booleans [layers, heads]")
    parser.add_argument("--images", type=Path, help="folder of the photos (default: the data's)")
    parser.add_argument("--samples", type=int, default=100, help="how many (default: %(default)s)")
    parser.add_argument("--max-length", type=int, default=2048, help="tokens of a sample")
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--tau", type=float, help="threshold")
    chosen.add_argument("--keep", type=int, help="heads per layer, on average")
    options = parser.parse_args(words)
    try:
        kept = _calibrate(options)
    except AtpError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    np.save(options.out, kept)
    print("heads kept in each layer:", *kept.sum(1))
    return 0


def _calibrate(options: argparse.Namespace) -> Heads:
    if options.out.suffix != ".npy":
        raise InputError(f"{options.out}", why="a .npy file is written.", fix="name it so.")
    source = Source.open(options.checkpoint)
    text = source.spec.text
    if options.keep is not None and not 1 <= options.keep <= text.heads:
        raise InputError(
            f"--keep {options.keep}", why=f"a layer has {text.heads}.", fix="choose from 1 on."
        )
    records = [it for it in read_records(options.data, options.images) if it.images]
    if not records:
        raise InputError(
            f"{options.data}: no record has a photo",
            why="what heads see of photos is measured.",
            fix="give conversations with photos.",
        )
    reference = LlavaReference.load(options.checkpoint)
    found = list(_ratios(reference, source, records[: options.samples], options.max_length))
    group = text.heads // text.kv_heads
    keep = None if options.keep is None else options.keep / group
    kept = kept_heads(by_groups(np.stack(found), text.kv_heads), tau=options.tau, keep=keep)
    return np.repeat(kept, group, axis=1)


def _ratios(
    reference: LlavaReference, source: Source, records: list[Record], max_length: int
) -> Iterator[Ratios]:
    processor = load_processor(source.checkpoint.path, reference.model)
    writer = ConversationWriter(
        processor.tokenizer,
        processor.template,
        image_token_id=source.spec.image_token_id,
        image_features=source.spec.vision.tokens,
        end_ids=processor.end_ids,
        max_length=max_length,
    )
    pictures = PixelValues(processor.image_processor)
    for record in records:
        yield attention_ratios(reference, writer.row(record).ids, pictures.stack(record.images))


if __name__ == "__main__":
    sys.exit(main())
