"""Picks the next token from the logits.

The order of the filters and what each keeps are those of Transformers' logits warpers
(`transformers/generation/logits_process.py`): temperature, then top-k, then top-p.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from atp_runtime.errors import CheckFailedError, InputError

_LEAST_TEMPERATURE = 1e-3
_GREATEST_TEMPERATURE = 1e3
_SORTED_FIRST = 4096


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token; otherwise the logits are divided by it.
        top_k: Only the k most likely tokens are drawn from; 0 for all.
        top_p: Only the most likely tokens whose probabilities sum to at least this are drawn
            from; 1 for all.
        seed: Makes the draws repeatable; None for a different answer each time.

    Raises:
        InputError: An option is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        temperature = self.temperature
        if temperature != 0 and not _LEAST_TEMPERATURE <= temperature <= _GREATEST_TEMPERATURE:
            raise _out_of_range("temperature", temperature, "0, or between 0.001 and 1000")
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise _out_of_range("top_k", self.top_k, "0 (all tokens) or a positive whole number")
        if not 0 <= self.top_p <= 1:
            raise _out_of_range("top_p", self.top_p, "between 0 and 1")
        if self.seed is not None and (not isinstance(self.seed, int) or self.seed < 0):
            raise _out_of_range("seed", self.seed, "0 or a positive whole number")


class Sampler:
    """Picks the tokens of one answer.

    Args:
        options: How to choose.
    """

    def __init__(self, options: SamplingOptions) -> None:
        self._options = options
        self._random = np.random.default_rng(options.seed)
        self._picked = 0

    def pick(self, logits: npt.NDArray[np.float32]) -> int:
        """The id of the next token.

        Args:
            logits: float32 [vocabulary].

        Raises:
            CheckFailedError: A logit is NaN or infinite, or becomes so by the temperature.
        """
        greedy = self._options.temperature == 0
        with np.errstate(over="ignore"):
            scores = logits if greedy else logits / np.float32(self._options.temperature)
        if not np.isfinite(scores).all():
            raise self._not_finite(scores)
        self._picked += 1
        if greedy:
            return int(np.argmax(scores))
        kept = keep_set(scores, top_k=self._options.top_k, top_p=self._options.top_p)
        shares = np.cumsum(np.exp(scores[kept] - scores[kept].max()), dtype=np.float64)
        drawn = np.searchsorted(shares, self._random.random() * shares[-1], side="right")
        return int(kept[drawn])

    def _not_finite(self, scores: npt.NDArray[np.float32]) -> CheckFailedError:
        count = np.count_nonzero(~np.isfinite(scores))
        return CheckFailedError(
            f"{count} of the {scores.size} logits of answer token {self._picked + 1} are NaN or "
            "infinite",
            why="the model's numbers overflowed or its weights are damaged; any pick from them "
            "would be arbitrary",
            fix="verify the bundle, or export it again with --precision fp32",
        )


def keep_set(
    scores: npt.NDArray[np.float32], *, top_k: int = 0, top_p: float = 1.0
) -> npt.NDArray[np.intp]:
    """The tokens that top-k and then top-p leave to be drawn from.

    Top-k keeps every token that ties with the k-th. Among tokens that tie where top-p cuts, those
    with the higher ids stay.

    Args:
        scores: Logits divided by the temperature, float32 [vocabulary].
        top_k: As in `SamplingOptions`.
        top_p: As in `SamplingOptions`.

    Returns:
        Ids, ascending, at least one.
    """
    kept = np.arange(scores.size)
    if 0 < top_k < scores.size:
        kept = np.flatnonzero(scores >= _kth_largest(scores, top_k))
    if top_p < 1:
        kept = kept[_top_p(scores[kept], top_p)]
    return kept


def _top_p(scores: npt.NDArray[np.float32], top_p: float) -> npt.NDArray[np.intp]:
    """Indices, ascending, of the tokens that top-p keeps.

    Counted from the least likely token, those within the first 1 - top_p of the probability go.
    The most likely tokens are sorted first; all of them only where the cut is not among these.
    """
    largest = scores.max()
    weights = np.exp(scores - largest)
    total = weights.sum()
    for count in (min(_SORTED_FIRST, scores.size), scores.size):
        ordered = np.sort(np.partition(scores, scores.size - count)[scores.size - count :])
        shares = np.exp(ordered - largest) / total
        below = (weights / total).sum(dtype=np.float64) - shares.sum(dtype=np.float64)
        reached = (below + np.cumsum(shares, dtype=np.float64)).astype(np.float32)
        removed = int(np.count_nonzero(reached <= np.float32(1 - top_p)))
        if removed:
            break
    kept_count = max(count - removed, 1)
    least = ordered[-kept_count]
    above = np.flatnonzero(scores > least)
    tied = np.flatnonzero(scores == least)
    return np.sort(np.concatenate([above, tied[-(kept_count - above.size) :]]))


def _kth_largest(scores: npt.NDArray[np.float32], k: int) -> np.float32:
    place = scores.size - k
    kth: np.float32 = np.partition(scores, place)[place]
    return kth


def _out_of_range(name: str, value: float, allowed: str) -> InputError:
    return InputError(
        f"{name} is {value}",
        why="no token can be drawn with that",
        fix=f"give a {name} that is {allowed}",
    )
