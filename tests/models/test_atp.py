"""The modules in PyTorch: the same decisions as the device, and gradients to train them by."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from atp_models.atp import FILE_NAME, AtpModule, AtpModules, normalise, score_features, soft_mask
from atp_models.pruning_config import PruningConfig
from atp_runtime.atp import AtpWeights, load_pruning_weights
from atp_runtime.errors import InputError
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import Selectors, VisualTokens

CONFIG = PruningConfig(layers=(4, 14, 24))
ABLATIONS: list[dict[str, Any]] = [
    {"redundancy": "self"},
    {"redundancy": "cross"},
    {"redundancy": "none"},
    {"strides": ()},
    {"redundancy": "self", "strides": ()},
    {"redundancy": "cross", "strides": ()},
]


def random_modules(seed: int, config: PruningConfig = CONFIG) -> AtpModules:
    """Modules whose thresholds differ from prompt to prompt."""
    torch.manual_seed(seed)
    modules = AtpModules(config)
    with torch.no_grad():
        for parameter in modules.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return modules


def random_scores(random: np.random.Generator, tokens: int) -> np.ndarray:
    kind = int(random.integers(0, 4))
    if kind == 0:
        return random.normal(size=tokens).astype(np.float32) * 4
    if kind == 1:
        return (random.exponential(size=tokens) / tokens).astype(np.float32)
    if kind == 2:
        return random.integers(0, 5, size=tokens).astype(np.float32) / 4
    return np.full(tokens, 0.1, dtype=np.float32)


def random_visual(random: np.random.Generator, images: int) -> VisualTokens:
    counts = [int(random.choice([1, 2, 36, 144, 576])) for _ in range(images)]
    image = np.repeat(np.arange(images), counts)
    places = [np.sort(random.choice(576, count, replace=False)) for count in counts]
    row, column = np.divmod(np.concatenate(places), 24)
    row[0] = column[0] = -1
    return VisualTokens(np.arange(len(image)), image, row, column)


@pytest.mark.parametrize("normalisation", ["min_max", "none"])
@pytest.mark.parametrize("has_text", [True, False])
@pytest.mark.parametrize("bounds", [{}, {"min_keep": 3, "max_keep": 20}])
def test_thresholds_and_kept_tokens_are_those_of_the_device(
    tmp_path: Path, normalisation: str, has_text: bool, bounds: dict[str, Any]
) -> None:
    config = replace(CONFIG, layers=(4,), normalisation=normalisation, **bounds)
    shares = set()
    for seed in range(200):
        random = np.random.default_rng(seed)
        modules = random_modules(seed, config)
        modules.save(tmp_path / FILE_NAME)
        point = PruningPoint(4, config.rule, config.rule_parameters(), "points.0.")
        device = Selectors([point], load_pruning_weights(tmp_path / FILE_NAME))
        visual = random_visual(random, images=1 + seed % 2)
        own = random_scores(random, len(visual))
        cross = np.abs(random_scores(random, len(visual)))
        expected = device(point, own, cross, has_text, visual)
        arrays = own, cross, visual.image, visual.row, visual.column
        kept = modules[0].keep_mask(*map(torch.from_numpy, arrays), has_text=has_text)
        assert kept.tolist() == expected.kept.tolist(), f"seed {seed}"
        for image, measured in expected.diagnostics.items():
            scores = [torch.from_numpy(array[visual.image == image]) for array in (own, cross)]
            thetas = modules[0].thresholds(*(s.double() for s in scores), has_text=has_text)
            wanted = measured["theta_r"], measured["theta_s"]
            assert [float(t.detach()) for t in thetas] == pytest.approx(wanted, abs=1e-6, rel=0)
        shares.add(round(float(kept.float().mean()), 1))
    assert len(shares) > 3


@given(
    seed=st.integers(0, 10_000),
    ablation=st.sampled_from(ABLATIONS),
    bounds=st.sampled_from([{}, {"min_keep": 3, "max_keep": 20}]),
    has_text=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_ablated_modules_keep_the_tokens_that_the_device_keeps(
    seed: int, ablation: dict[str, Any], bounds: dict[str, Any], has_text: bool
) -> None:
    random = np.random.default_rng(seed)
    config = replace(CONFIG, layers=(4,), **ablation, **bounds)
    modules, visual = random_modules(seed, config), random_visual(random, images=1 + seed % 2)
    point = PruningPoint(4, config.rule, config.rule_parameters(), "points.0.")
    tensors = {name: value.numpy() for name, value in modules.state_dict().items()}
    device = Selectors([point], {"points.0.": AtpWeights.from_tensors(tensors, "points.0.")})
    own, cross = (random_scores(random, len(visual)) for _ in range(2))
    expected = device(point, own, cross, has_text, visual)
    arrays = own, cross, visual.image, visual.row, visual.column
    kept = modules[0].keep_mask(*map(torch.from_numpy, arrays), has_text=has_text)
    assert kept.tolist() == expected.kept.tolist()


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_ablated_criteria_have_no_say_in_the_margins(ablation: dict[str, Any]) -> None:
    module = random_modules(5, replace(CONFIG, **ablation))[0]
    own, cross = torch.randn(576).double(), torch.rand(576).double()
    theta_r, theta_s = module.thresholds(own, cross)
    red = {"self": normalise(own), "cross": normalise(cross), "none": None}.get(
        module.config.redundancy, (normalise(own) + normalise(cross)) / 2
    )
    row, column = grid()
    above = [] if red is None else [red - theta_r]
    if module.config.strides:
        score = torch.zeros(576).double()
        for stride, value in ((2, 0.25), (4, 0.8125), (8, 0.953125)):
            score[(row % stride == 0) & (column % stride == 0)] = value
        above.append(score - theta_s)
    expected = torch.stack(above).max(0).values
    torch.testing.assert_close(module.margins(own, cross, row, column), expected)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_gradients_of_ablated_modules_are_finite_and_reach_what_decides(
    ablation: dict[str, Any],
) -> None:
    module = random_modules(5, replace(CONFIG, **ablation))[0]
    own, cross = torch.randn(144).requires_grad_(), torch.rand(144).requires_grad_()
    soft_mask(module.margins(own, cross, *grid(12, 12)), 10.0).sum().backward()
    for value in (own, cross, *module.parameters()):
        assert value.grad is not None
        assert value.grad.isfinite().all()
    for head, decides in (
        (module.redundancy, module.config.redundancy != "none"),
        (module.spatial, bool(module.config.strides)),
    ):
        assert head.weight.grad is not None
        assert bool(head.weight.grad.any()) == decides


def grid(rows: int = 24, columns: int = 24) -> tuple[Tensor, Tensor]:
    places = torch.arange(rows * columns)
    return places // columns, places % columns


def random_margins(seed: int) -> tuple[AtpModule, Tensor, Tensor, Tensor]:
    module = random_modules(seed)[1]
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(576, generator=generator)
    cross = torch.rand(576, generator=generator)
    return module, own, cross, module.margins(own.double(), cross.double(), *grid())


@pytest.mark.parametrize("seed", range(5))
def test_soft_mask_becomes_the_hard_mask_when_the_temperature_grows(seed: int) -> None:
    module, own, cross, margins = random_margins(seed)
    hard = module.keep_mask(own, cross, torch.zeros(576, dtype=torch.int64), *grid())
    soft = soft_mask(margins.detach(), 1e12)
    torch.testing.assert_close(soft, hard.double(), atol=1e-9, rtol=0)
    gentle = soft_mask(margins.detach(), 10.0)
    assert 0.0 < float(gentle.min()) < float(gentle.max()) < 1.0


def test_soft_mask_is_the_larger_of_both_criteria() -> None:
    module, own, cross, margins = random_margins(2)
    theta_r, theta_s = (float(t.detach()) for t in module.thresholds(own.double(), cross.double()))
    scaled = [(s - s.min()) / (s.max() - s.min()) for s in (own.double(), cross.double())]
    mask = soft_mask(margins.detach(), 10.0)
    for token, spatial in ((0, 0.953125), (4, 0.8125), (6, 0.25), (7, 0.0)):
        red = float((scaled[0][token] + scaled[1][token]) / 2)
        by_rule = [
            torch.sigmoid(torch.tensor(10.0 * (s - theta))).item()
            for s, theta in ((red, theta_r), (spatial, theta_s))
        ]
        assert float(mask[token]) == pytest.approx(max(by_rule), abs=1e-6)


def test_margins_follow_thresholds_that_were_predicted_from_other_tokens() -> None:
    module, own, cross, _ = random_margins(4)
    row, column = grid()
    some = own > own.median()

    thresholds = module.thresholds(own[some], cross[some])
    margins = module.margins(own, cross, row, column, thresholds=thresholds)

    off_grid = (row % 2 == 1) | (column % 2 == 1)
    red = (normalise(own) + normalise(cross)) / 2
    expected = torch.maximum(red - thresholds[0], -thresholds[1])
    torch.testing.assert_close(margins[off_grid], expected[off_grid])
    assert not torch.equal(margins, module.margins(own, cross, row, column))


def test_a_batch_of_prompts_is_scored_like_one_by_one() -> None:
    module = random_modules(3)[0]
    own, cross = torch.randn(4, 3, 36), torch.rand(4, 3, 36)
    row, column = grid(6, 6)
    together = module.margins(own, cross, row, column)
    assert together.shape == (4, 3, 36)
    for at in ((0, 0), (2, 1), (3, 2)):
        alone = module.margins(own[at], cross[at], row, column)
        torch.testing.assert_close(together[at], alone)


@pytest.mark.parametrize(
    ("own", "cross"),
    [
        (torch.randn(36, generator=torch.Generator().manual_seed(0)), torch.rand(36)),
        (torch.zeros(36), torch.zeros(36)),
        (torch.full((1,), 0.3), torch.full((1,), 0.1)),
        (torch.arange(36.0) // 18, torch.full((36,), 0.1)),
    ],
)
def test_gradients_are_finite_when_scores_are_tied_or_constant(own: Tensor, cross: Tensor) -> None:
    module = AtpModules(CONFIG).initialise(0)[0]
    own, cross = own.clone().requires_grad_(), cross.clone().requires_grad_()
    row, column = grid(6, 6)
    soft_mask(
        module.margins(own, cross, row[: len(own)], column[: len(own)]), 10.0
    ).sum().backward()
    for value in (own, cross, *module.parameters()):
        assert value.grad is not None
        assert value.grad.isfinite().all()
    assert float(module.spatial.weight.grad.abs().sum()) > 0


def test_training_from_the_start_can_move_every_part_towards_a_target() -> None:
    module = AtpModules(CONFIG).initialise(0)[0]
    generator = torch.Generator().manual_seed(1)
    own, cross = torch.randn(4, 144, generator=generator), torch.rand(4, 144, generator=generator)
    before = copy.deepcopy(module.state_dict())
    parameters, gaps = list(module.parameters()), []
    for _ in range(100):
        gap = soft_mask(module.margins(own, cross, *grid(12, 12)), 20.0).mean() - 0.6
        gaps.append(abs(gap.item()))
        for parameter, slope in zip(
            parameters, torch.autograd.grad(gap.square(), parameters), strict=True
        ):
            parameter.data -= 0.002 * slope
    assert gaps[-1] < 0.1 * gaps[0]
    for name, value in module.state_dict().items():
        assert not torch.equal(value, before[name]), name


def test_arithmetic_follows_the_scores_when_the_weights_are_bfloat16() -> None:
    module = AtpModules(CONFIG).initialise(0)[0].bfloat16()
    theta_r, theta_s = module.thresholds(torch.randn(36), torch.rand(36))
    assert theta_r.dtype == theta_s.dtype == torch.float32


@given(
    seed=st.integers(0, 5000),
    distribution=st.sampled_from(["uniform", "normal", "peaked"]),
    redundancy=st.sampled_from(["both", "self"]),
)
@example(seed=0, distribution="uniform", redundancy="cross")
@example(seed=0, distribution="normal", redundancy="cross")
@settings(max_examples=60, deadline=None)
def test_untrained_modules_keep_about_a_quarter_of_random_scores(
    seed: int, distribution: str, redundancy: str
) -> None:
    modules = AtpModules(replace(CONFIG, redundancy=redundancy)).initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(576, generator=generator) * 3
    cross = {
        "uniform": lambda: torch.rand(576, generator=generator) / 576,
        "normal": lambda: torch.randn(576, generator=generator).abs() / 576,
        "peaked": lambda: torch.softmax(3 * torch.randn(576, generator=generator), 0),
    }[distribution]()
    for index in range(len(modules)):
        kept = modules[index].keep_mask(own, cross, torch.zeros(576, dtype=torch.int64), *grid())
        assert 0.15 <= float(kept.float().mean()) <= 0.35


def test_untrained_modules_keep_the_grid_of_stride_4_when_nothing_else_decides() -> None:
    module = AtpModules(replace(CONFIG, redundancy="none")).initialise(0)[0]
    row, column = grid()
    images = torch.zeros(576, dtype=torch.int64)
    kept = module.keep_mask(torch.randn(576), torch.rand(576), images, row, column)
    assert kept.tolist() == ((row % 4 == 0) & (column % 4 == 0)).tolist()


def test_initialise_depends_on_the_seed_alone() -> None:
    first, again, other = (AtpModules(CONFIG).initialise(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["points.0.shared.weight"], other["points.0.shared.weight"])
    assert not torch.equal(first["points.0.shared.weight"], first["points.1.shared.weight"])


def test_normalise_keeps_the_dtype_and_gives_0_for_constants() -> None:
    scaled = normalise(torch.tensor([[1.0, 3.0, 5.0], [0.1, 0.1, 0.1]]))
    assert scaled.dtype == torch.float32
    assert scaled.tolist() == [[0.0, 0.5, 1.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("tokens", [7, 36, 575, 576])
def test_constant_scores_have_no_spread_and_no_correlation_in_float32(tokens: int) -> None:
    constant, other = torch.full((tokens,), 0.1), torch.linspace(0, 1, tokens)
    features = score_features(constant, other, constant.sum())
    assert (float(features[1]), float(features[14])) == (0.0, 0.0)


def test_the_file_has_the_documented_tensors_and_is_read_again(tmp_path: Path) -> None:
    modules = AtpModules(replace(CONFIG, layers=(1, 2))).initialise(3)
    modules.save(tmp_path / FILE_NAME)
    shapes = {
        "shared.weight": [32, 16],
        "shared.bias": [32],
        "redundancy.weight": [1, 32],
        "redundancy.bias": [1],
        "spatial.weight": [1, 32],
        "spatial.bias": [1],
    }
    tensors = load_file(tmp_path / FILE_NAME)
    expected = {f"points.{at}.{name}": shape for at in (0, 1) for name, shape in shapes.items()}
    assert {name: list(value.shape) for name, value in tensors.items()} == expected
    read = AtpModules.load(tmp_path / FILE_NAME, modules.config).state_dict()
    assert all(torch.equal(value, read[name]) for name, value in modules.state_dict().items())


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("points.2.spatial.bias", None, "missing"),
        ("points.3.spatial.bias", torch.zeros(1), "unknown"),
        ("points.0.shared.weight", torch.zeros(32, 9), "[32, 9]"),
        ("points.1.redundancy.bias", torch.tensor([torch.inf]), "infinite"),
    ],
)
def test_a_file_is_refused_by_the_tensor_that_is_wrong(
    tmp_path: Path, name: str, value: Tensor | None, said: str
) -> None:
    tensors = {**AtpModules(CONFIG).initialise().state_dict()}
    tensors.pop(name, None)
    save_file(tensors if value is None else {**tensors, name: value}, tmp_path / FILE_NAME)
    with pytest.raises(InputError) as refusal:
        AtpModules.load(tmp_path / FILE_NAME, CONFIG)
    assert name in refusal.value.what
    assert said in refusal.value.what


def test_a_damaged_or_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME
    with pytest.raises(InputError, match=FILE_NAME):
        AtpModules.load(file, CONFIG)
    file.write_bytes(b"\x00" * 20)
    with pytest.raises(InputError, match=FILE_NAME):
        AtpModules.load(file, CONFIG)
