"""The architectures of the sample models: residual, plain and depthwise, for 28x28 grey images.

Each factory gives a fresh, untrained network that maps `[batch, 1, 28, 28]` to `[batch, classes]`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def conv_norm(inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias and its batch norm; the padding keeps the size at stride 1."""
    padding = kernel // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, arXiv:1512.03385, sec. 4.2, option B)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(inputs, outputs, kernel=3, stride=stride)
        self.conv2, self.bn2 = conv_norm(outputs, outputs, kernel=3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Sequential() if same else nn.Sequential(*conv_norm(inputs, outputs, kernel=1, stride=stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, inputs, h, w]` to `[batch, outputs, h / stride, w / stride]`."""
        y = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """The CIFAR layout of He et al. 2016: a stem, three stages of `blocks` residual blocks, one linear layer."""

    def __init__(self, *, blocks: int, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(1, widths[0], kernel=3)
        self.relu = nn.ReLU()
        stages, inputs = [], widths[0]
        for index, width in enumerate(widths):
            strides = [2 if index else 1] + [1] * (blocks - 1)
            stage = []
            for stride in strides:
                stage.append(ResidualBlock(inputs, width, stride=stride))
                inputs = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, 1, 28, 28]` to `[batch, classes]`."""
        y = self.stages(self.relu(self.bn1(self.conv1(x))))
        scores: Tensor = self.fc(self.pool(y).flatten(1))
        return scores


class InvertedResidual(nn.Module):
    """Expand, depthwise 3x3, project (Sandler et al. 2018, arXiv:1801.04381, sec. 3.3)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            *conv_norm(inputs, hidden, kernel=1),
            nn.ReLU6(),
            *conv_norm(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.ReLU6(),
            *conv_norm(hidden, outputs, kernel=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, inputs, h, w]` to `[batch, outputs, h / stride, w / stride]`."""
        y: Tensor = self.body(x)
        return x + y if self.residual else y


def resnet20(classes: int = 10) -> nn.Module:
    """ResNet-20 of He et al. 2016 with one input channel: widths 16, 32, 64."""
    return ResNet(blocks=3, widths=(16, 32, 64), classes=classes)


def vgg11(
    classes: int = 10, widths: Sequence[int] = (32, 64, 128, 128, 128, 128, 128, 128), inputs: int = 1
) -> nn.Module:
    """VGG-11 with batch norm (Simonyan & Zisserman 2015), narrowed, for 28x28 images.

    The eight convolutions and the five places where the size halves are VGG-11's; the last halving is the average.
    """
    layers: list[nn.Module] = []
    for index, width in enumerate(widths):
        layers += [*conv_norm(inputs, width, kernel=3), nn.ReLU()]
        if index in (0, 1, 3, 5):
            layers.append(nn.MaxPool2d(2))
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def mobilenet_v2(classes: int = 10) -> nn.Module:
    """MobileNetV2's layout (Sandler et al. 2018), narrowed, for 28x28 images: expansion 4, ten blocks."""
    layers: list[nn.Module] = [*conv_norm(1, 16, kernel=3), nn.ReLU6()]
    inputs = 16
    for width, blocks, first_stride in ((24, 2, 2), (32, 3, 2), (64, 3, 1), (96, 2, 2)):
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            layers.append(InvertedResidual(inputs, width, stride=stride, expansion=4))
            inputs = width
    layers += [*conv_norm(inputs, 192, kernel=1), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(192, classes))


def resnet8(classes: int = 10) -> nn.Module:
    """The shortest network of ResNet-20's layout: one block in each stage, widths 16, 32, 64."""
    return ResNet(blocks=1, widths=(16, 32, 64), classes=classes)


def lenet_300_100(classes: int = 10, dropout: float = 0.0) -> nn.Module:
    """LeNet-300-100 (LeCun et al. 1998): two hidden layers of 300 and 100, 266,610 weights and biases.

    With `dropout`, so large a share of each hidden layer is dropped in training.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in ((784, 300), (300, 100)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(100, classes))


def small_cnn(classes: int = 10, widths: Sequence[int] = (16, 32, 64), inputs: int = 1) -> nn.Module:
    """Three 3x3 convolutions with batch norm and pooling between them, and one linear layer; no shortcuts."""
    layers: list[nn.Module] = []
    for index, width in enumerate(widths):
        layers += [*conv_norm(inputs, width, kernel=3), nn.ReLU()]
        if index < 2:
            layers.append(nn.MaxPool2d(2))
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
