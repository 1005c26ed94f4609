"""What is left of a layer whose channels are all gone: its bias, everywhere.

A residual branch of which nothing stays adds a constant to its stream. The layers that made or read its channels are
replaced by `Silent`, which looks at its input's size alone: no multiplication is left, and exporters fold the rest.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Silent(nn.Module):
    """Gives its bias, or zeros, at every position where the convolution or linear layer in its place gave something.

    `[n, in, ...]` to `[n, channels, ...]` for a convolution, `[..., in]` to `[..., channels]` for a linear layer.
    """

    def __init__(
        self,
        *,
        channels: int,
        bias: nn.Parameter | None,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.channels, self.kernel, self.stride = channels, kernel, stride
        self.padding, self.dilation = padding, dilation
        self.bias = bias

    def reset_parameters(self) -> None:
        """Fresh weights: a bias of zero."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The bias in the shape that the layer would have given."""
        if not self.kernel:
            given = x.new_zeros(*x.shape[:-1], self.channels)
            return given if self.bias is None else given + self.bias
        sizes = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(x.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        ]
        given = x.new_zeros(x.shape[0], self.channels, *sizes)
        return given if self.bias is None else given + self.bias.view(1, -1, *[1] * len(sizes))


def can_be_silent(layer: nn.Module) -> bool:
    """Whether `silent_from` knows the layer: linear, or a convolution that is padded with zeros by numbers."""
    if isinstance(layer, nn.Linear):
        return True
    plain = isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return plain and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def silent_from(layer: Any) -> Silent:
    """What takes the place of a convolution or linear layer (or of another `Silent`), with the bias that it has."""
    if isinstance(layer, Silent):
        return layer
    if isinstance(layer, nn.Linear):
        nothing: tuple[int, ...] = ()
        return Silent(
            channels=layer.out_features, bias=layer.bias, kernel=nothing, stride=nothing, padding=nothing,
            dilation=nothing,
        )  # fmt: skip
    return Silent(
        channels=layer.out_channels, bias=layer.bias, kernel=layer.kernel_size, stride=layer.stride,
        padding=layer.padding, dilation=layer.dilation,
    )  # fmt: skip
