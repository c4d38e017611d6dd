"""The one number of a pruning point that is turned until it keeps as many tokens as planned.

Whatever the rule, counts come from the runtime's own selection on the recorded scores, so what is
fitted is what runs: `min_keep`, `max_keep`, ties and rounding included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from atp_calibration.budget.passes import PointScores
from atp_runtime.atp import AtpWeights
from atp_runtime.errors import InputError
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import PointSelector

_TURNED = ("atp", "top_k")
_RANGE = 20.0  # of an offset to a sigmoid's argument: from all tokens to none
_STEPS = 26  # a millionth of the range, and counts are whole numbers

Weights = Mapping[str, AtpWeights]


def kept_tokens(
    point: PruningPoint, weights: Weights, scores: Sequence[PointScores]
) -> list[tuple[int, ...]]:
    """What a point keeps of each image of each sample."""
    selector = PointSelector(point, weights)
    kept = []
    for it in scores:
        selection = selector(it.own, it.cross, it.has_text, it.visual())
        kept.append(tuple(int(image["kept"]) for image in selection.diagnostics.values()))
    return kept


def mean_kept(point: PruningPoint, weights: Weights, scores: Sequence[PointScores]) -> float:
    """What a point keeps of an image, on average over all images, those without any left too."""
    kept = sum(map(sum, kept_tokens(point, weights, scores)))
    return kept / sum(it.size.images for it in scores)


def is_fittable(points: Sequence[PruningPoint]) -> bool:
    """Whether each of the points has a number to turn."""
    return all(point.rule in _TURNED and not point.rows for point in points)


def check_fittable(point: PruningPoint) -> None:
    """Makes sure that the point has a number to turn.

    Raises:
        InputError: Its rule keeps all tokens, or none.
    """
    if not is_fittable([point]):
        raise InputError(
            f"the rule {point.rule!r} before layer {point.before_layer} cannot be fitted",
            why="it has neither thresholds nor a number of tokens to keep.",
            fix="look for rates with --search sigmoid, which makes it top_k, or export with atp.",
        )


def with_kept(
    point: PruningPoint, wanted: float, weights: Weights, scores: Sequence[PointScores]
) -> PruningPoint:
    """The point, turned until the samples' images keep `wanted` tokens on average.

    Where that lies between two reachable averages, the lower one is taken.

    Args:
        point: As it is.
        wanted: Tokens per image.
        weights: The bundle's ATP modules.
        scores: What the point sees of the samples.
    """

    def mean(parameters: Mapping[str, float]) -> float:
        return mean_kept(_with(point, parameters), weights, scores)

    if point.rule == "top_k":
        return _with(point, _top_k(point, wanted, mean))
    return _with(point, _atp(point, wanted, mean))


def _top_k(
    point: PruningPoint, wanted: float, mean: Callable[[Mapping[str, float]], float]
) -> Mapping[str, float]:
    if "keep" in point.parameters and point.parameters["keep"] is not None:
        return {"keep": int(wanted + 0.5)}
    ratio = _turned(lambda ratio: mean({"ratio": ratio}), wanted, 1.0, 0.0)
    return {"ratio": ratio}


def _atp(
    point: PruningPoint, wanted: float, mean: Callable[[Mapping[str, float]], float]
) -> Mapping[str, float]:
    """The redundancy criterion is turned, and the spatial one only if it alone keeps too much.

    Its grids come and go as a whole, so it is made to keep no more than half of what is planned,
    as where thresholds are fitted in training; token by token the other one fills up.
    """
    if point.parameters.get("redundancy") == "none":
        return {"spatial_offset": _turn(lambda o: mean({"spatial_offset": o}), wanted)}
    spatial = float(point.parameters.get("spatial_offset", 0.0))

    def by_grid(offset: float) -> float:
        return mean({"spatial_offset": offset, "redundancy_offset": _RANGE})

    if by_grid(spatial) > wanted:
        spatial = _turned(by_grid, wanted / 2, spatial, _RANGE)
    redundancy = _turn(lambda o: mean({"spatial_offset": spatial, "redundancy_offset": o}), wanted)
    return {"redundancy_offset": redundancy, "spatial_offset": spatial}


def _turn(mean: Callable[[float], float], wanted: float) -> float:
    return _turned(mean, wanted, -_RANGE, _RANGE)


def _turned(mean: Callable[[float], float], wanted: float, most: float, least: float) -> float:
    """Where `mean` comes down to `wanted`, on the way from the value that keeps most to least."""
    if mean(most) <= wanted:
        return most
    for _ in range(_STEPS):
        middle = (most + least) / 2
        most, least = (middle, least) if mean(middle) > wanted else (most, middle)
    return least


def _with(point: PruningPoint, parameters: Mapping[str, float]) -> PruningPoint:
    return replace(point, parameters={**point.parameters, **parameters})
