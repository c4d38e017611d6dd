"""How well answers are predicted, record by record, as sums that processes can join.

Answers are teacher-forced: a token counts as right when it is the most likely one behind the true
tokens before it, and an answer when all of its tokens are, its end included. An answer that greedy
decoding would write is right by this measure, and the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from atp_models.training.records import Record
from atp_models.training.soft_state import SoftOutput

_COLUMNS = ("number", "tokens", "right", "answers", "right_answers", "loss", "images", "mean")


@dataclass(frozen=True)
class KindScore:
    """Of one kind of question.

    Attributes:
        answers: How many there were.
        accuracy: Share of them that were right.
        mean_tokens: Visual tokens averaged over all decoder layers, per image.
    """

    answers: int
    accuracy: float
    mean_tokens: float


@dataclass(frozen=True)
class Scores:
    """Of a whole set of records.

    Attributes:
        records: How many there were.
        loss: Mean cross-entropy per token.
        token_accuracy: Share of tokens that were right.
        answer_accuracy: Share of answers that were.
        mean_tokens: Visual tokens averaged over all decoder layers, per image.
        kept: Visual tokens that leave each pruning point, per image.
        kinds: By kind of question.
    """

    records: int
    loss: float
    token_accuracy: float
    answer_accuracy: float
    mean_tokens: float
    kept: tuple[float, ...]
    kinds: dict[str, KindScore]


def row_results(
    output: SoftOutput, targets: Tensor, answers: Tensor, numbers: Tensor, images: Tensor
) -> Tensor:
    """What each row of a batch gave, float64 [batch, columns]; see `join_results`.

    Args:
        output: Of the batch.
        targets: int64 [batch, tokens], of the batch.
        answers: int64 [batch, tokens], which answer of its row a supervised token belongs to.
        numbers: int64 [batch], of each row in its dataset.
        images: int64 [batch].
    """
    row, place = (targets >= 0).nonzero(as_tuple=True)
    right = (output.logits.argmax(1) == output.targets).double()
    loss = F.cross_entropy(output.logits, output.targets, reduction="none").double()
    rows, per_row = len(targets), max(1, int(answers.max()) + 1)
    answer = row * per_row + answers[row, place]
    all_right = torch.ones(rows * per_row, dtype=torch.float64, device=row.device)
    all_right = all_right.scatter_reduce(0, answer, right, "amin")
    exists = torch.zeros_like(all_right).scatter(0, answer, 1.0)

    def per_record(values: Tensor) -> Tensor:
        return torch.zeros(rows, dtype=torch.float64, device=row.device).index_add(0, row, values)

    columns = [
        numbers.double(),
        per_record(torch.ones_like(right)),
        per_record(right),
        exists.view(rows, per_row).sum(1),
        (all_right * exists).view(rows, per_row).sum(1),
        per_record(loss),
        images.double(),
        output.mean_tokens.double(),
        *output.counts.double(),
    ]
    return torch.stack(columns, dim=1)


def join_results(results: Tensor, records: Sequence[Record]) -> Scores:
    """The scores of a set of records.

    Args:
        results: float64 [rows, columns] of all batches; rows that were computed twice, as
            processes do to come out even, count once.
        records: The set.
    """
    by_number = {int(line[0]): line for line in results.cpu()}
    table = torch.stack([by_number[number] for number in sorted(by_number)])
    kinds: dict[str, list[int]] = {}
    for place, number in enumerate(sorted(by_number)):
        kinds.setdefault(records[number].kind, []).append(place)
    tokens = max(1.0, float(_column(table, "tokens").sum()))
    return Scores(
        records=len(table),
        loss=float(_column(table, "loss").sum()) / tokens,
        token_accuracy=float(_column(table, "right").sum()) / tokens,
        answer_accuracy=_kind(table).accuracy,
        mean_tokens=_kind(table).mean_tokens,
        kept=tuple(_per_image(table, table[:, len(_COLUMNS) :]).tolist()),
        kinds={kind: _kind(table[places]) for kind, places in sorted(kinds.items())},
    )


def _kind(table: Tensor) -> KindScore:
    answers = float(_column(table, "answers").sum())
    right = float(_column(table, "right_answers").sum())
    images = _column(table, "images")
    mean = _per_image(table, (_column(table, "mean") * images).unsqueeze(1))
    return KindScore(int(answers), right / max(1.0, answers), float(mean))


def _per_image(table: Tensor, sums: Tensor) -> Tensor:
    return sums.sum(0) / _column(table, "images").sum().clamp_min(1)


def _column(table: Tensor, name: str) -> Tensor:
    return table[:, _COLUMNS.index(name)]
