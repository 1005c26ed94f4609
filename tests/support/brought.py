"""Networks as people bring them: ways between layers that no textbook has, each small enough to be looked through."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Unpooled(nn.Module):
    """Pooling that keeps where its maxima were, and unpooling with them, as SegNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 5, 1)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        pooled, places = self.pool(self.a(x).relu())
        found: Tensor = self.c(self.unpool(self.b(pooled), places))
        return found


class PooledOverChannels(nn.Module):
    """A pool over pairs of channels: a 3-D one, on what has four dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 12, 3), nn.Conv2d(12, 5, 1)
        self.pool = nn.MaxPool3d((2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.c(self.b(self.pool(self.a(x))).relu())
        return found


class PooledByTurns(nn.Module):
    """The same with windows that overlap: no channel can leave before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(15, 12, 3), nn.Conv2d(12, 5, 1)
        self.pool = nn.MaxPool3d((2, 1, 1), stride=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.c(self.b(self.pool(self.a(x))).relu())
        return found


class WrittenOut(nn.Module):
    """The number of features stands in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(64, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(self.a(x).relu(), 2)
        found: Tensor = self.c(self.b(pooled.view(-1, 64)).relu())
        return found


class SharedHead(nn.Module):
    """One head for two scales, as detectors have it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, 2, 1)
        self.tower, self.scores = nn.Conv2d(12, 10, 3, padding=1), nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.a(x).relu()
        coarse = self.b(fine).relu()
        return self.scores(self.tower(fine).relu()), self.scores(self.tower(coarse).relu())


class SplitAndShuffled(nn.Module):
    """Fixed parts, of which one goes round a layer, and then channels that become pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.up, self.c = nn.PixelShuffle(2), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = torch.split(self.a(x), [16, 16], dim=1)
        found: Tensor = self.c(self.up(torch.cat([self.b(one).relu(), other], dim=1)))
        return found


class GroupedGrus(nn.Module):
    """Columns of an image as steps in time; every half of the channels has a recurrent layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 5)
        self.parts = nn.ModuleList(nn.GRU(8, 8, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        halves = self.a(x).relu().mean(2).transpose(1, 2).chunk(2, dim=-1)
        found: Tensor = self.c(torch.cat([part(half)[0] for part, half in zip(self.parts, halves, strict=True)], -1))
        return found


class BothWays(nn.Module):
    """Two recurrent layers on each other, forwards and backwards."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(24, 8), nn.Linear(8, 5)
        self.rnn = kind(16, 12, 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.a(x).relu().mean(2).transpose(1, 2)
        found: Tensor = self.c(self.b(self.rnn(steps)[0]).relu())
        return found


class Bilinear(nn.Module):
    """Two vectors, multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 8), nn.Linear(12, 6)
        self.both, self.c = nn.Bilinear(8, 6, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        given = x.flatten(1)[:, :12]
        found: Tensor = self.c(self.both(self.a(given), self.b(given)).relu())
        return found


class WeightNormed(nn.Module):
    """A weight that is computed from its length and its direction; what it reads stays, as its length would change."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 12, 3), nn.Conv2d(8, 5, 1)
        self.b = nn.utils.parametrizations.weight_norm(nn.Conv2d(12, 8, 3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.c(self.b(self.a(x).relu()).relu())
        return found


class Shadowing(nn.Module):
    """A class that has its own `modules`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3), nn.Conv2d(8, 5, 1)
        self.modules = ["a", "b"]  # type: ignore[method-assign,assignment]  # as people do

    def forward(self, x: Tensor) -> Tensor:
        for name in ("a", "b"):
            x = getattr(self, name)(x).relu()
        found: Tensor = self.c(x)
        return found


class InSinglePrecision(nn.Module):
    """Steps that must not run in a lower precision, which the exporter keeps in a graph of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        with torch.autocast("cpu", enabled=False):
            x = x.float()
            x = (x / x.std((2, 3), keepdim=True).to(torch.float32)).tanh()
            with torch.no_grad():
                length = x.abs().amax((2, 3), keepdim=True)
            x = x / (1 + length)
        found: Tensor = self.c(self.b(x).relu())
        return found


class WindowedAttention(nn.Module):
    """Attention within windows: a dimension more than batch and heads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.qkv = nn.Conv2d(3, 12, 1), nn.Linear(12, 48)
        self.out, self.c = nn.Linear(16, 12), nn.Linear(12, 5)
        self.register_buffer("mask", torch.rand(4, 1, 1, 36, generator=torch.Generator().manual_seed(0)) > 0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).unflatten(3, (2, 6)).unflatten(2, (2, 6)).permute(0, 2, 4, 3, 5, 1).reshape(x.shape[0], 4, 36, -1)
        q, k, v = self.qkv(x).reshape(*x.shape[:3], 3, 4, 4).permute(3, 0, 1, 4, 2, 5)
        x = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        found: Tensor = self.c(self.out(x.transpose(2, 3).flatten(3)).relu()).mean((1, 2))
        return found


class Tiled(nn.Module):
    """A small parameter, laid side by side, and a number written out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 3), nn.Conv2d(8, 5, 1)
        self.place = nn.Parameter(torch.zeros(1, 12, 4, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = (self.a(x) + self.place.tile(3, 2)).relu().view(-1, 12, 144).cumsum(2)
        found: Tensor = self.c(self.b(x.unflatten(2, (12, 12))).relu())
        return found


class Standardised(nn.Module):
    """Convolutions whose weights have mean zero and variance one in every output channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3), nn.Conv2d(8, 5, 1)
        self.gain = nn.Parameter(torch.ones(8, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.b.weight.reshape(1, 8, -1)
        weight = nn.functional.batch_norm(weight, None, None, weight=self.gain.view(-1), training=True)
        x = nn.functional.conv2d(self.a(x).relu(), weight.reshape_as(self.b.weight), self.b.bias)
        found: Tensor = self.c(x.relu())
        return found


class NoPrefix(nn.Module):
    """Tokens before the others, handled apart, of which there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 1), nn.Linear(12, 8), nn.Linear(8, 5)
        self.before = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).flatten(2).transpose(1, 2)
        x = torch.cat([x[:, : self.before], x[:, self.before :].relu()], dim=1)
        found: Tensor = self.c(self.b(x).relu()).mean(1)
        return found


BROUGHT: dict[str, Callable[[], nn.Module]] = {
    "unpooled": Unpooled,
    "pooled over channels": PooledOverChannels,
    "pooled by turns": PooledByTurns,
    "written out": WrittenOut,
    "shared head": SharedHead,
    "split and shuffled": SplitAndShuffled,
    "grouped recurrent": GroupedGrus,
    "recurrent": lambda: BothWays(nn.RNN),
    "gated recurrent": lambda: BothWays(nn.GRU),
    "long short-term": lambda: BothWays(nn.LSTM),
    "bilinear": Bilinear,
    "weight norm": WeightNormed,
    "shadowing": Shadowing,
    "in single precision": InSinglePrecision,
    "windowed attention": WindowedAttention,
    "tiled": Tiled,
    "no prefix": NoPrefix,
    "standardised weights": Standardised,
}
