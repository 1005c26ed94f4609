"""Tiny networks, one for every way that channels are coupled; each maps `[batch, 3, 12, 12]` to `[batch, 5]`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compressor.checkpoint.architectures import Architecture
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.data.preprocessing import Preprocessing

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
        for layer in nn.Module.modules(module):
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


# Ways that channels take between layers


class Shuffled(nn.Module):
    """ShuffleNet's shuffle between grouped convolutions: view, transpose, view."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 12, 1), nn.Conv2d(12, width, 1, groups=3)
        self.deep, self.second = nn.Conv2d(width, width, 3, groups=width), nn.Conv2d(width, 12, 1, groups=3)
        self.head = head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(torch.relu(self.stem(x))))
        batch, channels, height, width = x.shape
        x = x.view(batch, 3, channels // 3, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.head(torch.relu(self.second(self.deep(x))))


class Halved(nn.Module):
    """Halves by chunk, unequal parts by split; one part goes round the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.inner, self.outer, self.last = nn.Conv2d(8, 12, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(24, 8, 1)
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        stays, goes = torch.relu(self.norm(self.stem(x))).chunk(2, dim=1)
        narrow, wide = torch.relu(self.inner(goes)).split([4, 8], dim=1)
        return self.head(torch.relu(self.last(torch.cat([stays, self.outer(narrow), torch.sigmoid(wide)], dim=1))))


class PaddedSkip(nn.Module):
    """The shortcut of CIFAR's ResNets, option A: every second pixel, zeros for the channels that are new."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.Conv2d(16, 16, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.head = head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return self.head(torch.relu(y + nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))))


def pixel_shuffled() -> nn.Module:
    """Four channels become one with four times the pixels."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 24, 3), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(6, 8, 3), head(8)
    )


class DenselyConnected(nn.Module):
    """DenseNet's block: every layer reads what all earlier ones gave, through a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 6 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 6 * i, 6, 3, padding=1, bias=False) for i in range(3))
        self.norm, self.head = nn.BatchNorm2d(26), head(26)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(torch.relu(norm(x)))], dim=1)
        return self.head(torch.relu(self.norm(x)))


class ChannelsFastest(nn.Module):
    """Flattened with the channels last, as networks that came from TensorFlow are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(200, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).permute(0, 2, 3, 1).flatten(1)
        return self.out(torch.relu(self.fc(x)))


class FusedAttention(nn.Module):
    """Attention written by hand from one linear layer: 9 patches, 3 heads of 4 features.

    With a `table` it has a bias for each offset, looked up by a buffer.
    """

    index: Tensor

    def __init__(self, *, table: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 10, 4, stride=4)
        self.norm, self.qkv, self.proj = nn.LayerNorm(10), nn.Linear(10, 36), nn.Linear(12, 10)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(10, 5)
        self.table = nn.Parameter(torch.zeros(25, 3)) if table else None
        at = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")).flatten(1)
        offsets = at[:, :, None] - at[:, None, :] + 2
        self.register_buffer("index", offsets[0] * 5 + offsets[1])  # [9, 9]

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        batch, count, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, count, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * 0.5) @ k.transpose(-2, -1)
        if self.table is not None:  # Swin's
            scores = scores + self.table[self.index.view(-1)].view(9, 9, -1).permute(2, 0, 1).unsqueeze(0)
        y = self.drop(scores.softmax(dim=-1)) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(batch, count, 12))
        return self.head(x.mean(1))


class EinsumAttention(nn.Module):
    """Attention in Einstein's notation, queries, keys and values from layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.proj, self.head = nn.Conv2d(3, 10, 4, stride=4), nn.Linear(12, 10), nn.Linear(10, 5)
        self.q, self.k, self.v = nn.Linear(10, 12), nn.Linear(10, 12), nn.Linear(10, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(x).unflatten(-1, (3, 4)) for layer in (self.q, self.k, self.v))  # [batch, 9, 3, 4]
        weights = torch.einsum("bihd,bjhd->bhij", q, k).mul(0.5).softmax(-1)
        return self.head((x + self.proj(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))).mean(1))


class Tied(nn.Module):
    """One weight in two layers in a row, and one that is read the other way round behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 12, 4, stride=4), head(12)
        self.a, self.b, self.up = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 20)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).permute(0, 2, 3, 1)
        x = torch.relu(self.b(torch.relu(self.a(x))))
        x = nn.functional.linear(torch.relu(self.up(x)), self.up.weight.t())
        return self.head(x.permute(0, 3, 1, 2))


class GatedTogether(nn.Module):
    """Gates that look at all channels at once: their mean at each pixel, and a soft-maximum over them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.gate = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 3), nn.Linear(12, 10)
        self.head = head(10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x * torch.sigmoid(x.mean(1, keepdim=True) - x.amax(1, keepdim=True))
        gate = self.gate(x.mean((2, 3))).softmax(dim=1)
        return self.head(self.conv(x) * gate[:, :, None, None])


class Unruled(nn.Module):
    """A Fourier transform over one layer's channels, between two layers that are as others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.odd, self.last, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(4, 8, 1), head(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.odd(torch.relu(self.stem(x)))
        return self.head(torch.relu(self.last(torch.fft.rfft(y, dim=1).abs())))


WAYS: dict[str, Callable[[], nn.Module]] = {
    "channel shuffle": lambda: Shuffled(18),
    "channel shuffle across": lambda: Shuffled(24),
    "halves": Halved,
    "padded skip": PaddedSkip,
    "pixel shuffle": pixel_shuffled,
    "dense concatenation": DenselyConnected,
    "channels fastest": ChannelsFastest,
    "norm after activation": norm_after_activation,
    "fused attention": FusedAttention,
    "bias table": lambda: FusedAttention(table=True),
    "einsum attention": EinsumAttention,
    "tied": Tied,
    "gated together": GatedTogether,
    "without a rule": Unruled,
}
