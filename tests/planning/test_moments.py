"""Windows, second moments and least squares, against torch's own layers and solvers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.graph.outputs import outputs_of
from compressor.planning import moments as module_moments
from compressor.planning.mean_fit import Residuals, fit_mean
from compressor.planning.moments import (
    Moments,
    Reader,
    drawn_positions,
    features,
    fit,
    reader_of,
    solve,
    targets,
    wanted_rows,
)
from compressor.planning.walk import program_of, readers
from tests.support.topologies import alive

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(5, 3), (4, 5)),
    "linear on tokens": (nn.Linear(5, 3), (4, 7, 5)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (3, 4, 9)),
    "conv1d same, even kernel": (nn.Conv1d(4, 6, 4, padding="same", dilation=2), (3, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3), (3, 4, 7, 6)),
    "conv2d strides": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (3, 4, 9, 8)),
    "conv2d same": (nn.Conv2d(4, 6, (4, 3), padding="same"), (3, 4, 7, 6)),
    "conv2d valid": (nn.Conv2d(4, 6, 3, padding="valid"), (3, 4, 7, 6)),
    "conv2d groups": (nn.Conv2d(4, 6, 3, groups=2, bias=False, stride=2), (3, 4, 7, 7)),
    "conv2d depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=2), (3, 4, 6, 6)),
    "conv3d": (nn.Conv3d(2, 4, (2, 3, 1), stride=(1, 2, 1), padding=(0, 1, 0), groups=2), (2, 2, 4, 5, 3)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (3, 4, 5)),
    "transposed 2d": (
        nn.ConvTranspose2d(4, 6, (3, 2), stride=(3, 2), padding=(1, 0), output_padding=(2, 1)), (2, 4, 4, 3),
    ),
    "transposed groups": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, dilation=2, padding=1), (2, 4, 4, 4)),
    "transposed 3d": (nn.ConvTranspose3d(2, 3, 2, stride=2, bias=False), (1, 2, 2, 3, 2)),
}  # fmt: skip

for layer_of_these_tests, _ in LAYERS.values():
    alive(layer_of_these_tests)


def read(layer: nn.Module, x: Tensor) -> Reader:
    program = program_of(nn.Sequential(layer), (x,), batch=len(x))
    ((_, node),) = readers(program)
    return reader_of(program, node, layer.weight)  # type: ignore[arg-type]  # every layer here has one


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Oracles


@pytest.mark.parametrize("name", LAYERS)
def test_features_times_the_matrix_are_the_layers_output(name: str) -> None:
    layer, shape = LAYERS[name]
    x = data(*shape)
    reader = read(layer, x)
    output = outputs_of(layer, [x])[0]
    positions = drawn_positions(reader, output, wanted=10**9, generator=torch.Generator())
    matrix = reader.matrix(layer.weight.detach())  # type: ignore[operator]
    rows = features(reader, x, positions)
    assert rows.shape[0] == matrix.shape[0]
    assert rows.shape[2] == matrix.shape[2]
    bias: Any = layer.bias
    made = rows @ matrix.mT + (0 if bias is None else bias.detach().view(len(matrix), 1, -1))
    wanted = targets(reader, output, positions)
    assert made.numel() == output.numel()
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_a_weight_comes_back_from_its_matrix(name: str) -> None:
    layer, shape = LAYERS[name]
    reader, weight = read(layer, data(*shape)), layer.weight.detach()
    assert torch.equal(reader.tensor(reader.matrix(weight)), weight)


@pytest.mark.parametrize("name", LAYERS)
def test_some_positions_are_rows_of_all_of_them(name: str) -> None:
    layer, shape = LAYERS[name]
    x = data(*shape)
    reader, output = read(layer, x), outputs_of(layer, [x])[0]
    few = drawn_positions(reader, output, wanted=2 * shape[0], generator=torch.Generator().manual_seed(0))
    assert torch.equal(few, few.unique())
    matrix, bias = reader.matrix(layer.weight.detach()), layer.bias
    made = features(reader, x, few) @ matrix.mT + (0 if bias is None else bias.detach().view(len(matrix), 1, -1))
    torch.testing.assert_close(made, targets(reader, output, few), rtol=1e-4, atol=1e-5)
    there = output[:, 0].numel() if reader.dims else output.numel() // output.shape[-1]
    assert made.shape[1] == min(2 * shape[0], there)


def test_second_moments_of_batches_are_those_of_all_rows_in_float64() -> None:
    x, t = data(2, 60, 5) + 3, data(2, 60, 4, seed=1) - 7
    found = Moments()
    for part in (slice(0, 10), slice(10, 11), slice(11, 60)):
        found.add(x[:, part], t[:, part])
    centred = found.centred()
    for g in range(2):
        both = torch.cov(torch.cat([x[g], t[g]], dim=1).double().T, correction=0)
        torch.testing.assert_close(centred.xx[g], both[:5, :5], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(centred.tx[g], both[5:, :5], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(centred.tt[g], both[5:, 5:].diagonal(), rtol=1e-5, atol=1e-6)
    about_zero = found.centred(intercept=False)
    torch.testing.assert_close(about_zero.xx[0], (x[0].double().T @ x[0].double()) / 60, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(about_zero.tx[1], (t[1].double().T @ x[1].double()) / 60, rtol=1e-5, atol=1e-6)


def test_a_small_variance_far_from_zero_is_not_lost_in_rounding() -> None:
    x = 1 + 1e-4 * data(1, 4096, 6)
    found = Moments()
    for part in x.split(512, dim=1):
        found.add(part, part[..., :2])
    expected = torch.cov(x[0].double().T, correction=0)
    torch.testing.assert_close(found.covariance()[0], expected, rtol=1e-3, atol=1e-11)
    torch.testing.assert_close(found.centred().tx[0], expected[:2], rtol=1e-3, atol=1e-11)


def moments_of(x: Tensor, t: Tensor) -> Moments:
    found = Moments()
    found.add(x.unsqueeze(0), t.unsqueeze(0))
    return found


@pytest.mark.parametrize("eigen", [True, False])
@pytest.mark.parametrize("intercept", [True, False])
def test_a_fit_is_torchs_least_squares(intercept: bool, eigen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not eigen:
        monkeypatch.setattr(module_moments, "EIGEN_AT_MOST", 0)
        monkeypatch.setattr(module_moments, "RIDGES_WIDE", (1e-6,))
    x = data(400, 6) + 0.5
    t = x @ data(6, 3, seed=1) + 0.05 * data(400, 3, seed=2) + (2.0 if intercept else 0.0)
    found = fit(
        moments_of(x[:300], t[:300]), moments_of(x[300:], t[300:]), torch.zeros(1, 3, 6), torch.zeros(1, 3),
        intercept=intercept,
    )  # fmt: skip
    design = torch.cat([x, torch.ones(400, 1)], dim=1) if intercept else x
    exact = torch.linalg.lstsq(design.double(), t.double()).solution
    torch.testing.assert_close(found.weight[0], exact[:6].T, rtol=1e-2, atol=1e-3)
    expected_shift = exact[6] if intercept else torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(found.shift[0], expected_shift, rtol=1e-2, atol=2e-3)
    assert found.after < 0.01 < 0.5 < found.before


@pytest.mark.parametrize("intercept", [True, False])
def test_a_fit_on_a_support_is_torchs_least_squares_row_by_row(
    intercept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_moments, "RIDGES", (1e-9,))
    x = data(400, 9) @ data(9, 9, seed=4) + 0.5
    t = x @ data(9, 6, seed=1) + 0.05 * data(400, 6, seed=2)
    kept = data(1, 6, 9, seed=3) > torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -9.0]).view(1, 6, 1)
    found = fit(
        moments_of(x[:300], t[:300]), moments_of(x[300:], t[300:]), torch.zeros(1, 6, 9), torch.zeros(1, 6),
        intercept=intercept, kept=kept,
    )  # fmt: skip
    assert not bool(found.weight[~kept].any())
    for row, used in enumerate(kept[0]):
        design = torch.cat([x[:, used], torch.ones(400, int(intercept))], dim=1).double()
        if not design.shape[1]:
            continue
        exact = torch.linalg.lstsq(design, t[:, row].double()).solution
        torch.testing.assert_close(found.weight[0, row, used], exact[: int(used.sum())], rtol=1e-2, atol=2e-3)


def test_exact_weights_are_recovered_in_every_group() -> None:
    x, weight, shift = data(3, 500, 4) - 1, data(3, 2, 4, seed=1), data(3, 2, seed=2)
    t = x @ weight.mT + shift.unsqueeze(1)
    parts = Moments(), Moments()
    parts[0].add(x[:, :350], t[:, :350])
    parts[1].add(x[:, 350:], t[:, 350:])
    found = fit(*parts, torch.zeros_like(weight), torch.zeros_like(shift), intercept=True)
    torch.testing.assert_close(found.weight, weight.double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.shift, shift.double(), rtol=1e-4, atol=1e-4)


def test_a_fit_of_the_bias_alone_is_the_mean_of_what_the_weights_leave_over() -> None:
    x, weight, shift = data(2, 500, 4) + 2, data(2, 3, 4, seed=1), data(2, 3, seed=2)
    t = x @ weight.mT + shift.unsqueeze(1) + 0.1 * data(2, 500, 3, seed=3)
    other = weight + 0.05
    left = Residuals(other), Residuals(other)
    left[0].add(x[:, :200], t[:, :200])
    left[0].add(x[:, 200:350], t[:, 200:350])
    left[1].add(x[:, 350:], t[:, 350:])
    found = fit_mean(*left, other, torch.zeros_like(shift), intercept=True)
    assert torch.equal(found.weight, other.double())
    torch.testing.assert_close(found.shift, (t - x @ other.mT).double().mean(1), rtol=1e-5, atol=1e-6)
    judged, wanted = (x @ other.mT)[:, 350:], t[:, 350:]
    variance = wanted.var(1, correction=0).sum()
    fitted = (t - x @ other.mT)[:, :350].mean(1, keepdim=True)
    for said, bias in ((found.before, torch.zeros_like(fitted)), (found.after, fitted)):
        assert said == pytest.approx(float((wanted - judged - bias).square().mean(1).sum() / variance), rel=1e-4)


# Properties


@pytest.mark.parametrize("intercept", [True, False])
def test_a_layer_that_is_right_already_stays_bit_by_bit(intercept: bool) -> None:
    x, weight = data(40, 30), data(5, 30, seed=1)
    t = x @ weight.T
    found = fit(
        moments_of(x[:20], t[:20] + data(20, 5, seed=3)), moments_of(x[20:], t[20:]), weight.unsqueeze(0),
        torch.zeros(1, 5), intercept=intercept,
    )  # fmt: skip
    assert torch.equal(found.weight[0], weight.double())
    assert not bool(found.shift.any())
    assert found.ridge == math.inf
    assert found.before == found.after < 1e-6


@given(
    st.integers(1, 12), st.integers(1, 8), st.booleans(), st.booleans(),
    st.sampled_from(["random", "zero", "one", "twice"]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_fit_is_finite_and_never_worse_on_the_rows_that_judge(
    rows: int, width: int, intercept: bool, mean_only: bool, kind: str
) -> None:
    """Few rows, repeated channels, channels that are constant or dead: a singular covariance is no error."""
    x = data(2 * rows, width, seed=rows)
    x = {"random": x, "zero": torch.zeros_like(x), "one": torch.ones_like(x), "twice": x[:, :1].expand_as(x)}[kind]
    t = data(2 * rows, 3, seed=width)
    before = data(1, 3, width, seed=7)
    parts = [(x[:rows].unsqueeze(0), t[:rows].unsqueeze(0)), (x[rows:].unsqueeze(0), t[rows:].unsqueeze(0))]
    shift = torch.zeros(1, 3)
    if mean_only:
        left = Residuals(before), Residuals(before)
        for sums, part in zip(left, parts, strict=True):
            sums.add(*part)
        found = fit_mean(*left, before, shift, intercept=intercept)
    else:
        found = fit(moments_of(*(p[0] for p in parts[0])), moments_of(*(p[0] for p in parts[1])), before, shift,
                    intercept=intercept)  # fmt: skip
    assert bool(found.weight.isfinite().all())
    assert bool(found.shift.isfinite().all())
    assert 0 <= found.after <= found.before
    if mean_only or kind == "zero" or (kind == "one" and intercept):
        assert torch.equal(found.weight, before.double())
    if not intercept:
        assert not bool(found.shift.any())


def test_of_repeated_channels_each_takes_its_share() -> None:
    """The ridge pulls towards the weights that are there: two equal channels split what is missing alike."""
    x = data(300, 1).expand(-1, 2)
    t = x[:, :1] * 4
    found = fit(
        moments_of(x[:200], t[:200]), moments_of(x[200:], t[200:]), torch.zeros(1, 1, 2), torch.zeros(1, 1),
        intercept=True,
    )  # fmt: skip
    torch.testing.assert_close(found.weight[0, 0], torch.tensor([2.0, 2.0], dtype=torch.float64), rtol=1e-3, atol=1e-3)


def test_values_that_are_not_finite_leave_the_layer_as_it_is() -> None:
    x, t = data(20, 3), data(20, 2)
    x[3, 1] = math.inf
    weight = data(1, 2, 3, seed=5)
    found = fit(
        moments_of(x[:10], t[:10]), moments_of(x[10:], t[10:]), weight, torch.zeros(1, 2),
        intercept=True,
    )  # fmt: skip
    assert torch.equal(found.weight, weight.double())


def test_the_eigendecomposition_and_cholesky_agree_at_every_ridge() -> None:
    x, t = data(50, 5), data(50, 2, seed=1)
    covariances = moments_of(x, t).centred()
    weight = data(1, 2, 5, seed=2).double()
    for ridge, moved in module_moments._path(covariances, weight)[1:]:
        torch.testing.assert_close(moved, solve(covariances, weight, ridge=ridge), rtol=1e-8, atol=1e-10)


def test_a_matrix_whose_eigenvalues_do_not_converge_is_solved_by_cholesky(monkeypatch: pytest.MonkeyPatch) -> None:
    x, t = data(50, 5), data(50, 2, seed=1)
    covariances, weight = moments_of(x, t).centred(), data(1, 2, 5, seed=2).double()
    expected = module_moments._path(covariances, weight)

    def diverges(_: Tensor) -> None:
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", diverges)
    path = module_moments._path(covariances, weight)
    assert [ridge for ridge, _ in path] == [ridge for ridge, _ in expected]
    for (_, ours), (_, theirs) in zip(path, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_a_singular_covariance_without_ridge_is_solved_all_the_same() -> None:
    covariances = moments_of(torch.zeros(10, 4), data(10, 2)).centred()
    weight = data(1, 2, 4).double()
    torch.testing.assert_close(solve(covariances, weight, ridge=1e-6), weight)


def test_as_many_rows_are_wanted_as_determine_a_covariance() -> None:
    layer, shape = LAYERS["conv2d"]
    reader = read(layer, data(*shape))
    assert wanted_rows(reader, layer.weight) >= 20 * reader.matrix(layer.weight).shape[-1]  # type: ignore[arg-type]
