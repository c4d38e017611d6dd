import numpy as np
import pytest

from atp_runtime.evaluation.report import Adaptivity, Correlation, Spread
from atp_runtime.evaluation.token_statistics import latency, spread, token_statistics


def test_tokens_are_told_for_each_point_and_on_average(answered) -> None:
    answers = [
        answered(str(n), mean_visual_tokens=float(n), kept=(2 * n, n), images=(str(n),))
        for n in range(11)
    ]
    found = token_statistics(answers, (4, 9))
    assert found.mean == Spread(5, 1, 5, 9)  # of 0 to 10 the quantiles are the values themselves
    assert [(it.before_layer, it.kept) for it in found.points] == [
        (4, Spread(10, 2, 10, 18)),
        (9, Spread(5, 1, 5, 9)),
    ]
    assert found.entering == Spread(16, 16, 16, 16)
    assert (found.count, found.adaptivity) == (11, None)


def test_questions_without_images_do_not_count(answered) -> None:
    blind = answered("2", visual_tokens=0, mean_visual_tokens=0.0, kept=(), images=())
    assert token_statistics([answered("1"), blind], (4, 9)).count == 1
    assert token_statistics([blind], (4, 9)) is None


def test_quantiles_are_linear_between_two_values() -> None:
    assert spread([0.0, 10.0]) == Spread(5, 1, 5, 9)


def test_kept_tokens_are_ranked_against_each_number_of_the_data(answered) -> None:
    random = np.random.default_rng(0).permutation(9).tolist()
    answers = [
        answered(
            str(n),
            mean_visual_tokens=float(n * n),
            numbers={"objects": float(n), "holes": -float(n), "same": 1.0}
            | ({"some": float(random[n])} if n < 5 else {}),
        )
        for n in range(9)
    ]
    ranks = np.argsort(np.argsort(random[:5]))
    expected = np.corrcoef(ranks, np.arange(5))[0, 1]
    assert token_statistics(answers, ()).correlations == (
        Correlation("holes", 9, pytest.approx(-1)),
        Correlation("objects", 9, pytest.approx(1)),
        Correlation("same", 9, None),
        Correlation("some", 5, pytest.approx(expected)),
    )


def test_images_with_several_questions_show_whether_pruning_depends_on_them(answered) -> None:
    kept = {"a": (8, 8, 8), "b": (4, 10), "c": (5, 7), "d": (3,)}
    answers = [
        answered(f"{image}{n}", images=(image,), mean_visual_tokens=float(it))
        for image, values in kept.items()
        for n, it in enumerate(values)
    ]
    # a does not differ, b by 6, c by 2; d has one question.
    found = token_statistics(answers, (4, 9)).adaptivity
    assert found == Adaptivity(3, 2, pytest.approx(8 / 3))


def test_times_are_of_the_questions_whose_image_was_run(answered) -> None:
    times = [0.1, 0.2, 0.6]
    answers = [answered(str(n), seconds={"prefill": it}) for n, it in enumerate(times)]
    answers += [answered("3", seconds={"prefill": 9.0}, image_run=False)]
    answers += [answered("4", seconds={}, visual_tokens=0, finish_reason="failed")]
    found = latency(answers)
    assert (found.count, found.prefill_mean, found.prefill_median) == pytest.approx((3, 300, 200))
    assert latency(answers[3:]) is None
