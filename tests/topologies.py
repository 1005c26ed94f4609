"""Tiny networks, one for every way that channels are coupled; each maps `[batch, 3, 12, 12]` to `[batch, 5]`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compressor.checkpoint import Architecture, Checkpoint
from compressor.data import Preprocessing

INPUT = (1, 3, 12, 12)


def checkpoint_of(module: nn.Module, shape: tuple[int, ...] = INPUT) -> Checkpoint:
    """The module as a checkpoint that came as a pickle, with inputs of the shape."""
    return Checkpoint(
        module=module,
        example_inputs=(torch.randn(shape, generator=torch.Generator().manual_seed(0)),),
        architecture=Architecture(ref="pickle"),
        preprocessing=Preprocessing(),
        classes=None,
        name="net",
        path="net.pt",
        sha256="",
    )


def alive(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """The module in eval mode with every parameter and statistic drawn at random, so that no branch is dead."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator) * 0.3)
                layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
    return module.eval()


def head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.ReLU(), head(12))


def norm_after_activation() -> nn.Module:
    """A silenced channel is not zero behind this batch norm."""
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3), nn.Sigmoid(), head(8))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv1 = nn.Conv2d(16, 24, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(24)
        self.conv2 = nn.Conv2d(24, 16, 3, padding=1)
        self.head = head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(x + self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(28, 8, 1)
        self.bn = nn.BatchNorm2d(20)
        self.head = head(28)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.relu(self.a(x)), self.b(x)
        joined = self.bn(torch.cat([a, b], 1))
        return self.head(torch.cat([joined, self.c(torch.cat([a, joined], 1))], 1))


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 8, 1), nn.Hardswish(), head(8),
    )  # fmt: skip


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, groups=4),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 8, 1),
        head(8),
    )


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.ConvTranspose2d(16, 12, 2, stride=2), nn.BatchNorm2d(12),
        nn.ReLU(), nn.Conv2d(12, 8, 3), head(8),
    )  # fmt: skip


def flattened() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 25, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 5),
    )


def group_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 8, 3), head(8))


def instance_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.InstanceNorm2d(16, affine=True),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3),
        nn.InstanceNorm2d(8),
        nn.ReLU(),
        head(8),
    )


class LayerNormed(nn.Module):
    """ConvNeXt's order: depthwise, norm over channels, expand, contract, scaled residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 2, stride=2)
        self.dw = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.scale = nn.Parameter(torch.ones(16, 1, 1))
        self.head = head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = self.down(nn.functional.gelu(self.up(y))).permute(0, 3, 1, 2)
        return self.head(x + self.scale * y)


class Attention(nn.Module):
    """A pre-norm transformer block on patches: two heads, a class token, and the width kept as an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 16
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).reshape(x.shape[0], self.width, 9).permute(0, 2, 1)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.mlp(self.norm2(x)))[:, 0])


class Gated(nn.Module):
    """Squeeze and excitation: a channel's own scale is computed from all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Sigmoid()
        )
        self.act = nn.PReLU(16)
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        return self.head(self.out(x * self.squeeze(x)))


class Idle(nn.Module):
    """Two residual branches, of which `idle()` makes the second one say next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.conv3, self.conv4 = nn.Conv2d(8, 12, 3, padding=1, stride=2), nn.Conv2d(12, 8, 1, bias=False)
        self.bn1, self.bn3, self.bn4 = nn.BatchNorm2d(12), nn.BatchNorm2d(12), nn.BatchNorm2d(8)
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        y = self.bn4(self.conv4(torch.relu(self.bn3(self.conv3(x)))))
        return self.head(torch.relu(x[:, :, ::2, ::2] + y))


def idle() -> nn.Module:
    net = alive(Idle())
    with torch.no_grad():
        net.get_parameter("conv4.weight").mul_(1e-4)
    return net


TOPOLOGIES: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "norm after activation": norm_after_activation,
    "residual": Residual,
    "concatenated": Concatenated,
    "depthwise": depthwise,
    "grouped": grouped,
    "transposed": transposed,
    "flattened": flattened,
    "group norm": group_norm,
    "instance norm": instance_norm,
    "layer norm": LayerNormed,
    "attention": Attention,
    "gated": Gated,
}
