"""How a stage of the course learns, as options of `atp-train`."""

from __future__ import annotations

from dataclasses import dataclass

Options = dict[str, object]
"""Values by option; those of True are flags."""

_PACK = 64  # more than any image has questions
_FEW = 8  # each is a row of its own behind the first pruning point
_MODULES_LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class Dense:
    """Without pruning; a row is an image with all its questions.

    Attributes:
        learning_rate: Of LoRA and projector, as in the others.
        strides: Of the grids of visual tokens that enter; an image draws one.
    """

    learning_rate: float
    strides: tuple[int, ...] = (1,)

    def options(self, steps: int, rows: int) -> Options:
        """Options for `rows` rows in each of `steps` steps."""
        # One by one: packed rows differ in length, and alone they need no mask.
        return {
            "--dense": True,
            **_learning(self.learning_rate, steps, self.strides),
            **_one_by_one(rows, pack=_PACK),
        }


@dataclass(frozen=True)
class Fit:
    """Thresholds fitted to samples, without gradients; rows are samples.

    Attributes:
        keep: Tokens to keep at each point; None plans for the target.
        target_tokens: Visual tokens averaged over all layers.
    """

    keep: tuple[int, ...] | None = None
    target_tokens: int | None = None

    def options(self, steps: int, rows: int) -> Options:  # noqa: ARG002 - as in the others
        """Options for `rows` samples."""
        plan: Options = {"--target-tokens": self.target_tokens}
        if self.keep is not None:
            plan = {"--keep": ",".join(map(str, self.keep))}
        return {"--fit-thresholds": True, "--samples": rows, **plan}


@dataclass(frozen=True)
class Soft:
    """ATP modules and decoder together, by soft masks; rows are questions.

    Attributes:
        learning_rate: See `Dense`.
        target_tokens: See `Fit`.
        strides: See `Dense`.
        lambda_target: Weight of the distance to the target.
    """

    learning_rate: float
    target_tokens: int
    strides: tuple[int, ...] = (1,)
    lambda_target: float = 0.2

    def options(self, steps: int, rows: int) -> Options:
        """Options for `rows` rows in each of `steps` steps."""
        return {
            **_learning(self.learning_rate, steps, self.strides),
            # Together: the batch's mean is to meet the target, not each prompt alone.
            "--batch-size": rows,
            "--lambda-atp": 0.01,
            "--lambda-target": self.lambda_target,
            "--modules-learning-rate": _MODULES_LEARNING_RATE,
            "--target-tokens": self.target_tokens,
        }


@dataclass(frozen=True)
class Dropped:
    """Behind modules that stay as they are; a row is an image with a few of its questions.

    Attributes:
        learning_rate: See `Dense`.
        unpruned: Share of the rows from which nothing is dropped.
    """

    learning_rate: float
    unpruned: float = 0.0

    def options(self, steps: int, rows: int) -> Options:
        """Options for `rows` rows in each of `steps` steps."""
        return {
            "--freeze-modules": True,
            "--unpruned": self.unpruned,
            **_learning(self.learning_rate, steps, (1,)),
            **_one_by_one(rows, pack=_FEW),
        }


@dataclass(frozen=True)
class Scorers:
    """No run of `atp-train`: the layers that pruning points read; see `scorer_lessons`.

    Attributes:
        cross_weight: Of the loss of S_cross, where that of S_self weighs 1.
    """

    cross_weight: float


@dataclass(frozen=True)
class Cut:
    """No training: the decoder's change cut to what the deltas hold; see `cut_to_rank`.

    Attributes:
        rank: Of each projection's change. What is trained behind it adds its own rank.
    """

    rank: int


Method = Dense | Fit | Soft | Dropped


def _learning(learning_rate: float, steps: int, strides: tuple[int, ...]) -> Options:
    return {
        "--mode": "lora",
        "--learning-rate": learning_rate,
        "--max-steps": steps,
        "--visual-tokens-stride": ",".join(map(str, strides)),
    }


def _one_by_one(rows: int, *, pack: int) -> Options:
    return {"--batch-size": 1, "--accumulate": rows, "--pack": pack}
