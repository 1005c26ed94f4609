"""Networks as people report them of tools of this kind, each with the inputs that it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Callable[[int], tuple[Tensor, ...]]
VOCABULARY = 50


def floats(*shape: int) -> Inputs:
    """Normal random inputs; every batch size has its own."""
    return lambda batch: (torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch)),)


def tokens(length: int) -> Inputs:
    """Random tokens below the vocabulary's size."""
    return lambda batch: (torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(batch)),)


class Tokens(nn.Module):
    """Reads integers alone; a padding token, and a mean over the length."""

    def __init__(self, *, padding: bool) -> None:
        super().__init__()
        self.e = nn.Embedding(VOCABULARY, 16, padding_idx=0 if padding else None)
        self.a, self.b, self.padding = nn.Linear(16, 32, bias=not padding), nn.Linear(32, 10), padding

    def forward(self, ids: Tensor) -> Any:
        x = self.a(self.e(ids)).relu()
        return self.b(x.mean(1) if self.padding else x)


class Mixed(nn.Module):
    """An image and token numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.e, self.h = nn.Conv2d(3, 16, 3), nn.Embedding(VOCABULARY, 16), nn.Linear(32, 5)

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Any:
        return self.h(torch.cat([self.a(pixel_values).relu().mean((2, 3)), self.e(input_ids).mean(1)], 1))


class Hooked(nn.Module):
    """A forward hook that closes over the network, and whose feature the network reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 8), (8, 16), (16, 4)))
        self.h, self.seen = nn.Linear(20, 4), dict[str, Tensor]()
        self.b.register_forward_hook(lambda _m, _i, o: self.seen.__setitem__("b", o))

    def forward(self, x: Tensor) -> Any:
        y = self.c(self.b(self.a(x).relu()).relu()).relu()
        return self.h(torch.cat([y, self.seen["b"]], 1).mean((2, 3)))


class Closure(nn.Module):
    """A function kept on the instance."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Linear(16, 4)
        self.step = lambda z: self.b(z).relu()

    def forward(self, x: Tensor) -> Any:
        return self.c(self.step(self.a(x).relu()).mean((2, 3)))


class TwoNames(nn.Module):
    """A batch norm that is reached by two paths."""

    def __init__(self) -> None:
        super().__init__()
        self.n = nn.BatchNorm2d(16)
        self.s = nn.Sequential(nn.Conv2d(3, 16, 3), self.n, nn.ReLU(), nn.Conv2d(16, 12, 3))
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.s(x).relu().mean((2, 3)))


class Variadic(nn.Module):
    """Takes any number of inputs, behind a shuffle that is written in numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 16, 3), nn.Linear(16, 5)

    def forward(self, *images: Tensor) -> Any:
        y = sum(self.a(x).relu() for x in images)
        assert isinstance(y, Tensor)
        y = y.view(y.shape[0], 4, 4, *y.shape[2:]).transpose(1, 2).reshape(y.shape[0], 16, *y.shape[2:])
        return self.fc(y.mean((2, 3)))


class Named(nn.Module):
    """Returns a dict behind a channel shuffle that is written in numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 16, 3), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        y = self.a(x).relu()
        y = y.view(y.shape[0], 4, 4, *y.shape[2:]).transpose(1, 2).reshape(y.shape[0], 16, *y.shape[2:])
        return {"logits": self.fc(y.mean((2, 3))), "aux": y.mean((1, 2, 3))}


class Fourier(nn.Module):
    """A complex parameter, and a transform over features."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 32), nn.Linear(32, 4)
        self.f = nn.Parameter(torch.randn(9, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Any:
        return self.c(self.b(torch.fft.irfft(torch.fft.rfft(self.p(x)) * self.f, n=16)).relu())


class Positions(nn.Module):
    """A table of nothing but constants, added to a stream of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.p(x)
        angle = torch.arange(y.shape[-1], dtype=y.dtype)[None, :] / torch.arange(1, 9, dtype=y.dtype)[:, None]
        return self.q(y + torch.cat([angle.sin(), angle.cos()], 0)[None, :, None, :])


class Window(nn.Module):
    """Element-wise logic on the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        return self.b(x * ((x > 0) & (x < 1)))


class Sized(nn.Module):
    """Splits at a number in the code, and divides by height times width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(12, 12, 1), nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        kept, rest = torch.split(self.a(x).relu(), (4, 12), dim=1)
        mean = rest.sum(3, keepdim=True).sum(2, keepdim=True) / (rest.size(2) * rest.size(3))
        return self.c(torch.cat([kept, rest * self.b(mean).sigmoid()], 1))


class SharedHeads(nn.Module):
    """Two scales; the output convolutions are called on both."""

    def __init__(self) -> None:
        super().__init__()
        self.s, self.d = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.t2, self.t3 = (
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
            for _ in range(2)
        )
        self.out, self.obj = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Any:
        a = self.s(x).relu()
        p, q = self.t2(a), self.t3(self.d(a))
        return self.out(p), self.obj(p), self.out(q), self.obj(q)


class Neighbours(nn.Module):
    """Neighbours become channels by `nn.Unfold`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(24, 12, 1), nn.Conv2d(12, 4, 1)
        self.u = nn.Unfold((1, 3), padding=(0, 1))

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.a(x))
        return self.c(torch.relu(self.b(self.u(x).reshape(x.shape[0], 24, x.shape[2], x.shape[3]))))


class Faint(nn.Module):
    """Attention that hardly shows, beside steps in float32: its scale hangs on the width that a small one lost."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.m, self.h = nn.Linear(6, 8), nn.MultiheadAttention(8, 1, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        x = x + 1e-3 * self.m(x, x, x)[0]
        y = x.float()
        return self.h((y / (1 + y.abs().mean(1, keepdim=True))).to(x.dtype))


class Latent(nn.Module):
    """A generator: a vector, viewed as an image of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Sequential(nn.ConvTranspose2d(12, 16, 4), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1))

    def forward(self, z: Tensor) -> Any:
        return self.g(z.view(-1, 12, 1, 1))


IMAGE = floats(3, 8, 8)
CASES: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "tokens": (lambda: Tokens(padding=False), tokens(7)),
    "padded tokens": (lambda: Tokens(padding=True), tokens(7)),
    "mixed": (Mixed, lambda batch: (*IMAGE(batch), *tokens(7)(batch))),
    "hooked": (Hooked, IMAGE),
    "closure": (Closure, IMAGE),
    "two names": (TwoNames, IMAGE),
    "named": (Named, IMAGE),
    "variadic": (Variadic, lambda batch: (*IMAGE(batch), *IMAGE(batch))),
    "fourier": (Fourier, floats(8)),
    "positions": (Positions, floats(3, 16, 16)),
    "window": (Window, IMAGE),
    "sized": (Sized, IMAGE),
    "shared heads": (SharedHeads, IMAGE),
    "neighbours": (Neighbours, IMAGE),
    "faint": (Faint, floats(5, 6)),
    "latent": (Latent, floats(12)),
}
