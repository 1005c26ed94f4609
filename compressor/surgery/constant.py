"""Replace a layer whose channels are all removed by what remains of it: its bias, at every position.

A residual branch without channels adds a constant to its stream. The layers that produced or read the channels are
replaced by `Silent`, which reads only the size of its input: no multiplication remains, and exporters fold the rest.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Silent(nn.Module):
    """Outputs its bias, or zeros, at every output position of the convolution or linear layer that it replaces.

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
        """Reset the bias to zero."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the bias in the shape of the replaced layer's output."""
        if not self.kernel:
            output = x.new_zeros(*x.shape[:-1], self.channels)
            return output if self.bias is None else output + self.bias
        sizes = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(x.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        ]
        output = x.new_zeros(x.shape[0], self.channels, *sizes)
        return output if self.bias is None else output + self.bias.view(1, -1, *[1] * len(sizes))


def can_be_silent(layer: nn.Module) -> bool:
    """True if `silent_from` supports the layer: linear, or a convolution with zero padding in numbers."""
    if isinstance(layer, nn.Linear):
        return True
    plain = isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return plain and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def silent_from(layer: Any) -> Silent:
    """Return the replacement of a convolution or linear layer (or of another `Silent`), with the layer's bias."""
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
