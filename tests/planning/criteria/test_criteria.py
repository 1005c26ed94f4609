"""Every criterion against its formula, and the contract on every file of the family."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.channels.groups import BATCH_NORMS, ChannelGroup, Member, Role, trace
from compressor.errors import CalibrationError
from compressor.planning import criteria
from compressor.planning.calibration import Calibration, Needs, by_row, rows
from compressor.planning.criteria.expected_bn import rectified_mean
from compressor.planning.gathering import gather

BY_DATA = ("activation", "apoz", "taylor", "hessian", "obs")


class Residual(nn.Module):
    """A stem, a residual block, a grouped and a depthwise convolution, flatten → linear; `[batch, 2, 4, 4]`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 1)
        self.norm2 = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.wide = nn.Conv2d(4, 8, 1)
        self.norm3 = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 6, 1, groups=2)
        self.norm4 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.stem(x)).relu()
        y = (y + self.norm2(self.conv2(self.norm1(self.conv1(y)).relu()))).relu()
        y = self.norm3(self.wide(self.depthwise(y))).relu()
        return self.fc(self.norm4(self.grouped(y)).relu().flatten(1))


class Attention(nn.Module):
    """An encoder layer between two linear layers; `[batch, 5, 3]`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Parameters and batch norm statistics drawn at random; float64; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    for layer in module.modules():
        if isinstance(layer, BATCH_NORMS):
            layer.running_mean = torch.randn(layer.running_mean.shape, generator=generator) * 0.1
            layer.running_var = torch.rand(layer.running_var.shape, generator=generator) + 0.5
    return module.double().eval()


def data(shape: tuple[int, ...] = (2, 4, 4), classes: int = 3, *, batches: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(5, *shape, generator=generator), torch.randint(0, classes, (5,), generator=generator))
        for _ in range(batches)
    ]


@pytest.fixture(name="net")
def net_fixture() -> nn.Module:
    return lively(Residual())


@pytest.fixture(name="groups")
def groups_fixture(net: nn.Module) -> dict[str, ChannelGroup]:
    """By the group's first producer in the order of the network's layers."""
    order = [name for name, _ in net.named_modules()]
    found = trace(net, (torch.zeros(2, 2, 4, 4),)).groups
    return {min((m.layer for m in g.members if m.role is Role.PRODUCES), key=order.index): g for g in found}


def scored(name: str, net: nn.Module, groups: dict[str, ChannelGroup], *, labelled: bool = True) -> dict[str, Tensor]:
    criterion = criteria.load(name)
    batches = [(x, y if labelled else None) for x, y in data()]
    calibration = gather(net, list(groups.values()), needs=criterion.needs, batches=batches, seed=0)
    return {root: criterion.score(group, calibration=calibration) for root, group in groups.items()}


def weight(net: nn.Module, layer: str) -> Tensor:
    return net.get_parameter(f"{layer}.weight").detach()


# Oracles


def test_the_nets_of_these_tests_have_the_groups_they_are_for(groups: dict[str, ChannelGroup]) -> None:
    assert set(groups) == {"stem", "conv1", "wide", "grouped"}
    assert {m.layer for m in groups["stem"].members if m.role is Role.PRODUCES} == {"stem", "conv2"}
    assert (groups["wide"].channels, groups["wide"].size) == (4, 2)
    assert (groups["grouped"].channels, groups["grouped"].size) == (3, 2)


def test_l1_norm_adds_the_norms_of_a_coupled_residual_group(net: nn.Module, groups: dict[str, ChannelGroup]) -> None:
    expected = [
        sum(abs(v) for layer in ("stem", "conv2") for v in weight(net, layer)[c].flatten().tolist()) for c in range(4)
    ]
    torch.testing.assert_close(scored("l1-norm", net, groups)["stem"], torch.tensor(expected, dtype=torch.float64))


def test_l2_norm_adds_the_norms_of_a_coupled_residual_group(net: nn.Module, groups: dict[str, ChannelGroup]) -> None:
    expected = [
        sum(sum(v * v for v in weight(net, layer)[c].flatten().tolist()) ** 0.5 for layer in ("stem", "conv2"))
        for c in range(4)
    ]
    torch.testing.assert_close(scored("l2-norm", net, groups)["stem"], torch.tensor(expected, dtype=torch.float64))


def test_geometric_median_is_the_sum_of_distances(net: nn.Module, groups: dict[str, ChannelGroup]) -> None:
    expected = torch.zeros(4, dtype=torch.float64)
    for layer, c, other in itertools.product(("stem", "conv2"), range(4), range(4)):
        expected[c] += (weight(net, layer)[c] - weight(net, layer)[other]).square().sum().sqrt()
    torch.testing.assert_close(scored("geometric-median", net, groups)["stem"], expected)


def test_geometric_median_by_matrix_products_agrees(
    net: nn.Module, groups: dict[str, ChannelGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = scored("geometric-median", net, groups)["conv1"]
    monkeypatch.setattr("compressor.planning.criteria.geometric_median.DIRECT_AT_MOST", 0)
    torch.testing.assert_close(scored("geometric-median", net, groups)["conv1"], direct, rtol=0, atol=1e-6)


def test_geometric_median_scores_the_filter_at_the_median_lowest() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 1, 1))
    net[0].weight.data = torch.tensor([-5.0, 1.0, 9.0]).view(3, 1, 1, 1)
    groups = {g.root: g for g in trace(net, (torch.zeros(2, 1, 2, 2),)).groups}
    calibration = gather(net, list(groups.values()), needs=Needs.NOTHING, batches=None, seed=0)
    assert criteria.load("geometric-median").score(groups["0"], calibration=calibration).tolist() == [20, 14, 22]


def test_bn_scale_adds_the_scales_of_all_batch_norms(net: nn.Module, groups: dict[str, ChannelGroup]) -> None:
    expected = net.norm.weight.detach().abs() + net.norm2.weight.detach().abs()
    torch.testing.assert_close(scored("bn-scale", net, groups)["stem"], expected)


def test_expected_bn_is_the_mean_of_what_a_relu_makes_of_the_batch_norms(
    net: nn.Module, groups: dict[str, ChannelGroup]
) -> None:
    """Against a Monte-Carlo mean; five standard errors of 400,000 draws are within 0.01 here."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(400_000, 1, dtype=torch.float64, generator=generator)
    expected = torch.zeros(4, dtype=torch.float64)
    for name in ("norm", "norm2"):
        scale, shift = (net.get_parameter(f"{name}.{part}").detach() for part in ("weight", "bias"))
        expected += (shift + scale * draws).relu().mean(0)
    torch.testing.assert_close(scored("expected-bn", net, groups)["stem"], expected, rtol=0, atol=0.01)


def test_expected_bn_of_constants_and_far_from_zero() -> None:
    scale = torch.tensor([0.0, 0.0, 1.0, -1.0, 1e-300, 1.0], dtype=torch.float64)
    shift = torch.tensor([2.0, -2.0, 50.0, 0.0, -1.0, -50.0], dtype=torch.float64)
    expected = torch.tensor([2.0, 0.0, 50.0, (2 * torch.pi) ** -0.5, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(rectified_mean(scale, shift), expected)


def test_expected_bn_refuses_a_group_without_a_batch_norm() -> None:
    bare = lively(nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 1)))
    (group,) = trace(bare, (torch.zeros(2, 2, 4, 4),)).groups
    calibration = gather(bare, [group], needs=Needs.NOTHING, batches=None, seed=0)
    with pytest.raises(CalibrationError, match="no batch norm with a scale"):
        criteria.load("expected-bn").score(group, calibration=calibration)


def test_bn_scale_refuses_a_group_without_a_batch_norm() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    (group,) = trace(net, (torch.zeros(2, 3),)).groups
    calibration = gather(net, [group], needs=Needs.NOTHING, batches=None, seed=0)
    with pytest.raises(CalibrationError, match="group of `0` has no batch norm") as caught:
        criteria.load("bn-scale").score(group, calibration=calibration)
    assert "--protect 0" in str(caught.value.hint)


def test_lamp_is_a_square_over_the_squares_at_or_above_it(net: nn.Module, groups: dict[str, ChannelGroup]) -> None:
    squares = [float(weight(net, "stem")[c].square().sum() + weight(net, "conv2")[c].square().sum()) for c in range(4)]
    expected = [s / sum(t for t in squares if t >= s) for s in squares]
    found = scored("lamp", net, groups)["stem"]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert float(found.max()) == 1


def test_lamp_scores_a_group_of_zeros_zero(net: nn.Module, groups: dict[str, ChannelGroup]) -> None:
    net.conv1.weight.data.zero_()
    assert scored("lamp", net, groups)["conv1"].tolist() == [0] * 6


def test_random_scores_do_not_depend_on_the_order_of_the_groups(
    net: nn.Module, groups: dict[str, ChannelGroup]
) -> None:
    forwards = scored("random", net, groups)
    backwards = scored("random", net, dict(reversed(groups.items())))
    assert all(torch.equal(forwards[root], backwards[root]) for root in groups)
    assert not torch.equal(forwards["wide"], forwards["conv1"][:4])


def read_by(net: nn.Module, layer: str) -> Tensor:
    seen = []
    handle = net.get_submodule(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        for inputs, _ in data():
            net(inputs.double())
    handle.remove()
    return torch.cat(seen)


def test_activation_is_the_mean_of_what_the_consumers_read(net: nn.Module, groups: dict[str, ChannelGroup]) -> None:
    found = scored("activation", net, groups)
    torch.testing.assert_close(found["conv1"], read_by(net, "conv2").abs().mean((0, 2, 3)))
    torch.testing.assert_close(found["wide"], read_by(net, "grouped").unflatten(1, (2, 4)).abs().mean((0, 1, 3, 4)))
    torch.testing.assert_close(found["grouped"], read_by(net, "fc").unflatten(1, (2, 3, 16)).abs().mean((0, 1, 3)))
    both = [read_by(net, layer).abs().mean((0, 2, 3)) for layer in ("conv1", "wide")]
    torch.testing.assert_close(found["stem"], (both[0] + both[1]) / 2)


def test_apoz_equals_a_count_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 1, 1))
    net[0].weight.data = torch.tensor([1.0, -1.0, 0.0]).view(3, 1, 1, 1)
    (group,) = trace(net, (torch.zeros(2, 1, 2, 2),)).groups
    inputs = torch.tensor([[[1.0, 2.0], [-3.0, 0.0]], [[4.0, 5.0], [6.0, -7.0]]]).unsqueeze(1)
    calibration = gather(net, [group], needs=Needs.ACTIVATIONS, batches=[(inputs, None)], seed=0)
    found = criteria.load("apoz").score(group, calibration=calibration)
    assert found.tolist() == [5 / 8, 2 / 8, 0]  # positive, negative, and no values among eight
    assert calibration.images == 2


def test_apoz_refuses_a_network_without_a_single_zero() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    (group,) = trace(net, (torch.zeros(2, 3),)).groups
    calibration = gather(net, [group], needs=Needs.ACTIVATIONS, batches=data((3,)), seed=0)
    with pytest.raises(CalibrationError, match="is ever zero"):
        criteria.load("apoz").score(group, calibration=calibration)


def scaled(net: nn.Module, group: ChannelGroup, channel: int, factor: float) -> nn.Module:
    """A copy in which every parameter of one channel is multiplied by `factor`."""
    net = copy.deepcopy(net)
    parameters = dict(net.named_parameters())
    for member in group.members:
        for position, owner in zip(member.positions.tolist(), member.channels.tolist(), strict=True):
            if owner != channel or member.tensor not in parameters:
                continue
            parameters[member.tensor].data.select(member.dim, position).mul_(factor)
    return net


def loss_of(net: nn.Module) -> float:
    with torch.no_grad():
        losses = [functional.cross_entropy(net(x.double()), y, reduction="none") for x, y in data()]
    return float(torch.cat(losses).mean())


def test_taylor_is_the_slope_of_the_loss_as_a_channel_fades(net: nn.Module, groups: dict[str, ChannelGroup]) -> None:
    found = scored("taylor", net, groups)
    step = 1e-6
    for root, group in groups.items():
        for channel in range(group.channels):
            more, less = (loss_of(scaled(net, group, channel, 1 + s)) for s in (step, -step))
            assert float(found[root][channel]) == pytest.approx(abs(more - less) / (2 * step), rel=1e-5, abs=1e-8)


def test_hessian_is_half_of_w_squared_times_the_mean_squared_gradient(
    net: nn.Module, groups: dict[str, ChannelGroup]
) -> None:
    found = scored("hessian", net, groups)["conv1"]
    squares = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    images = [(x.double(), y) for xs, ys in data() for x, y in zip(xs, ys, strict=True)]
    for image, label in images:
        net.zero_grad()
        functional.cross_entropy(net(image[None]), label[None]).backward()
        for name, parameter in net.named_parameters():
            squares[name] += parameter.grad.square() / len(images)
    terms = {name: 0.5 * p.detach().square() * squares[name] for name, p in net.named_parameters()}
    expected = terms["conv2.weight"].sum((0, 2, 3)) + terms["conv1.weight"].sum((1, 2, 3)) + terms["conv1.bias"]
    torch.testing.assert_close(found, expected + terms["norm1.weight"] + terms["norm1.bias"])


def test_unlabelled_squared_gradients_tend_to_the_gauss_newton_diagonal() -> None:
    net = nn.Linear(2, 3, bias=False).double()
    net.weight.data = torch.tensor([[1.0, 0.5], [-0.5, 0.2], [0.3, -1.0]], dtype=torch.float64)
    image = torch.tensor([0.7, -1.3], dtype=torch.float64)
    draws = 3000
    found = gather(net, [], needs=Needs.SQUARED_GRADIENTS, batches=[(image.expand(draws, 2), None)], seed=0)
    share = (net.weight.detach() @ image).softmax(0)
    expected = (share * (1 - share))[:, None] * image.square()[None, :]
    # p (1 − p) of a variance bounded by 1/4: five standard errors of 3000 draws
    torch.testing.assert_close(found.squared_gradients["weight"], expected, rtol=0, atol=5 * 0.5 * 1.7 / draws**0.5)
    assert not found.labelled


def test_unlabelled_gradients_are_those_of_the_top_class(net: nn.Module, groups: dict[str, ChannelGroup]) -> None:
    with torch.no_grad():
        own = [(x, net(x.double()).argmax(1)) for x, _ in data()]
    without = gather(net, [], needs=Needs.GRADIENTS, batches=[(x, None) for x, _ in own], seed=0)
    minus_one = gather(net, [], needs=Needs.GRADIENTS, batches=[(x, torch.full((5,), -1)) for x, _ in own], seed=0)
    labelled = gather(net, [], needs=Needs.GRADIENTS, batches=own, seed=0)
    assert all(torch.equal(without.gradients[n], labelled.gradients[n]) for n, _ in net.named_parameters())
    assert all(torch.equal(without.gradients[n], minus_one.gradients[n]) for n, _ in net.named_parameters())
    assert (without.labelled, minus_one.labelled, labelled.labelled) == (False, False, True)
    assert without.images == 10
    assert float(scored("taylor", net, groups, labelled=False)["conv1"].max()) > 0


def test_an_output_that_is_not_class_scores_is_judged_by_its_energy() -> None:
    net = nn.Linear(2, 1).double()
    inputs = torch.randn(4, 2, dtype=torch.float64)
    found = gather(net, [], needs=Needs.GRADIENTS, batches=[(inputs, torch.zeros(4).long())], seed=0)
    expected = (net(inputs).detach() * inputs).mean(0, keepdim=True)
    torch.testing.assert_close(found.gradients["weight"], expected)
    assert not found.labelled
    curved = gather(net, [], needs=Needs.SQUARED_GRADIENTS, batches=[(inputs, None)], seed=0)
    torch.testing.assert_close(curved.squared_gradients["weight"], inputs.square().mean(0, keepdim=True))


def test_rows_of_a_grouped_convolution_are_its_columns_through_all_its_groups() -> None:
    conv, every = nn.Conv2d(8, 6, 1, groups=2), torch.arange(4)
    member = Member(layer="", tensor="weight", dim=1, role=Role.CONSUMES, positions=every, channels=every)
    found = rows(member, {"weight": conv.weight.detach()})
    assert found.shape == (4, 6)
    assert torch.equal(found[1], conv.weight.detach()[:, 1, 0, 0].double())


# The contract, on every file of the family


@pytest.mark.parametrize("name", criteria.names())
def test_scores_are_finite_float64_one_per_channel_and_the_same_again(
    name: str, net: nn.Module, groups: dict[str, ChannelGroup]
) -> None:
    first, second = scored(name, net, groups), scored(name, net, groups)
    for root, group in groups.items():
        assert first[root].shape == (group.channels,)
        assert first[root].dtype is torch.float64
        assert bool(first[root].isfinite().all())
        assert bool((first[root] >= 0).all())
        assert torch.equal(first[root], second[root])


@pytest.mark.parametrize("name", criteria.names())
def test_a_criterion_says_what_it_is_and_needs(name: str) -> None:
    criterion = criteria.load(name)
    assert criterion.help.endswith(".")
    assert 20 < len(criterion.help) <= 120
    assert isinstance(criterion.comparable, bool)
    assert (criterion.needs is not Needs.NOTHING) == (name in BY_DATA)


@pytest.mark.parametrize("name", criteria.names())
def test_a_criterion_leaves_the_model_as_it_was(name: str, net: nn.Module, groups: dict[str, ChannelGroup]) -> None:
    net.train()
    net.norm1.eval()
    net.conv1.weight.requires_grad_(False)
    net.stem.bias.grad = torch.ones(4, dtype=torch.float64)
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    scored(name, net, groups)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    assert [n for n, m in net.named_modules() if not m.training] == ["norm1"]
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["conv1.weight"]
    assert [n for n, p in net.named_parameters() if p.grad is not None] == ["stem.bias"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("name", criteria.names())
def test_a_frozen_model_scores_like_a_live_one(name: str, net: nn.Module, groups: dict[str, ChannelGroup]) -> None:
    live = scored(name, net, groups)
    net.requires_grad_(False)
    with torch.no_grad():
        frozen = scored(name, net, groups)
    assert all(torch.equal(live[root], frozen[root]) for root in groups)


@pytest.mark.parametrize("name", [n for n in criteria.names() if n not in ("random", "obs")])
def test_equal_channels_score_alike(name: str, groups: dict[str, ChannelGroup], net: nn.Module) -> None:
    for tensor in (net.conv1.weight, net.conv1.bias, net.norm1.weight, net.norm1.bias):
        tensor.data[5] = tensor.data[2]
    for tensor in (net.norm1.running_mean, net.norm1.running_var):
        tensor[5] = tensor[2]
    net.conv2.weight.data[:, 5] = net.conv2.weight.data[:, 2]
    found = scored(name, net, groups)["conv1"]
    torch.testing.assert_close(found[5], found[2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BY_DATA)
@pytest.mark.parametrize("batches", [None, []])
def test_without_data_a_criterion_that_needs_it_is_refused(
    name: str, batches: list[tuple[Tensor, Tensor]] | None, net: nn.Module, groups: dict[str, ChannelGroup]
) -> None:
    with pytest.raises(CalibrationError) as caught:
        gather(net, list(groups.values()), needs=criteria.load(name).needs, batches=batches, seed=0)
    assert "--data" in str(caught.value.hint)
    data_free = gather(net, list(groups.values()), needs=Needs.NOTHING, batches=None, seed=0)
    with pytest.raises(CalibrationError, match="needs data"):
        criteria.load(name).score(groups["stem"], calibration=data_free)


@pytest.mark.parametrize("name", [n for n in criteria.names() if n not in ("bn-scale", "expected-bn")])
def test_a_transformer_can_be_scored(name: str) -> None:
    net = lively(Attention())
    groups = trace(net, (torch.zeros(2, 5, 3),)).groups
    criterion = criteria.load(name)
    calibration = gather(net, groups, needs=criterion.needs, batches=data((5, 3), 4), seed=0)
    for group in groups:
        found = criterion.score(group, calibration=calibration)
        assert found.shape == (group.channels,)
        assert bool(found.isfinite().all())


# Hand-made cases


def test_an_unknown_criterion_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(CalibrationError, match="no criterion called `l1-nrom`") as caught:
        criteria.load("l1-nrom")
    assert caught.value.hint == "did you mean `l1-norm`?"


def test_all_criteria_are_discovered() -> None:
    assert set(criteria.names()) == {
        *BY_DATA,
        "random",
        "l1-norm",
        "l2-norm",
        "geometric-median",
        "bn-scale",
        "expected-bn",
        "lamp",
    }


def test_naming_the_criteria_does_not_import_torch() -> None:
    code = "import sys; from compressor.planning import criteria; criteria.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_weights_that_are_not_finite_are_refused(net: nn.Module) -> None:
    net.conv1.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(CalibrationError, match=r"`conv1\.weight` holds values that are not finite"):
        gather(net, [], needs=Needs.NOTHING, batches=None, seed=0)


def test_a_label_without_a_class_is_refused(net: nn.Module) -> None:
    inputs, _ = data()[0]
    with pytest.raises(CalibrationError, match="a label 7, the network 3 classes"):
        gather(net, [], needs=Needs.GRADIENTS, batches=[(inputs, torch.full((5,), 7))], seed=0)


def test_data_of_another_shape_is_refused_and_the_model_is_restored(
    net: nn.Module, groups: dict[str, ChannelGroup]
) -> None:
    net.train()
    with pytest.raises(CalibrationError, match="fails on the calibration data"):
        gather(net, list(groups.values()), needs=Needs.ACTIVATIONS, batches=[(torch.zeros(2, 9, 4, 4), None)], seed=0)
    assert net.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


class Direct(nn.Module):
    """Two layers whose weights are used without calling them: in linear layers, or in bare products."""

    def __init__(self, *, products: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.products = products

    def forward(self, x: Tensor) -> Tensor:
        if self.products:
            return (x @ self.first.weight.t()).relu() @ self.second.weight.t()
        y = functional.linear(x, self.first.weight, self.first.bias).relu()
        return functional.linear(y, self.second.weight, self.second.bias)


def test_a_layer_that_is_never_called_shows_its_activations_all_the_same() -> None:
    net = lively(Direct(products=False))
    (group,) = trace(net, (torch.zeros(2, 3),)).groups
    found = gather(net, [group], needs=Needs.ACTIVATIONS, batches=data((3,)), seed=0)
    with torch.no_grad():
        expected = net.first(torch.cat([x for x, _ in data((3,))]).double()).relu().mean(0)
    torch.testing.assert_close(found.mean_absolute["first"], expected)


def test_a_group_that_no_layer_shows_is_refused() -> None:
    net = Direct(products=True)
    (group,) = trace(net, (torch.zeros(2, 3),)).groups
    with pytest.raises(CalibrationError, match=r"activations of the group of .* cannot be observed"):
        gather(net, [group], needs=Needs.ACTIVATIONS, batches=data((3,)), seed=0)


def test_statistics_fall_back_to_what_the_producers_write() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    every = torch.arange(4)
    producer = Member(layer="0", tensor="0.weight", dim=0, role=Role.PRODUCES, positions=every, channels=every)
    group = ChannelGroup(root="0", channels=4, members=(producer,))
    calibration: Calibration = gather(net, [group], needs=Needs.ACTIVATIONS, batches=data((3,)), seed=0)
    with torch.no_grad():
        expected = net[0](torch.cat([x for x, _ in data((3,))]).double()).abs().mean(0)
    torch.testing.assert_close(calibration.mean_absolute["0"], expected)


@pytest.mark.parametrize("at_once", [1, 20, 10**6])
def test_rows_that_are_judged_a_few_at_a_time_are_judged_as_all_at_once(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.planning.calibration.ELEMENTS_AT_ONCE", at_once)
    weight = torch.randn(7, 5, 3, 3)
    member = Member(
        layer="a", tensor="w", dim=0, role=Role.PRODUCES, positions=torch.arange(7), channels=torch.arange(7)
    )
    found = by_row({"w": weight}, lambda rows: rows.square().sum(dim=1))(member)
    assert found == pytest.approx(weight.double().flatten(1).square().sum(dim=1))
