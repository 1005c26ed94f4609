"""Targets that lie on an image, maps of classes or values and boxes, follow what is done to the image.

A map has the image's height and width as its last two sizes. Boxes `[n, 4]` are `x1, y1, x2, y2` in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

SMALLEST_BOX = 1.0  # pixels a side, after a crop


def lies_on(target: Any, image: Tensor) -> bool:
    """Return true if the target is a map of the image `[channels, h, w]`, or holds boxes."""
    if isinstance(target, Mapping):
        return "boxes" in target
    return isinstance(target, Tensor) and target.ndim >= 2 and target.shape[-2:] == image.shape[-2:]


def resized(target: Any, *, before: Tensor, after: Tensor) -> Any:
    """Return the target of the image `before` for the same image in the size of `after`.

    A map of whole numbers takes the nearest value, one of floats the mean of its neighbours.
    """
    (height, width), (new_height, new_width) = before.shape[-2:], after.shape[-2:]
    if (height, width) == (new_height, new_width):
        return target
    if isinstance(target, Mapping):
        scale = torch.tensor([new_width / width, new_height / height] * 2)
        return {**target, "boxes": target["boxes"].float() * scale}
    from torchvision.transforms.v2 import InterpolationMode, functional

    floats = target.is_floating_point()
    mode = InterpolationMode.BILINEAR if floats else InterpolationMode.NEAREST_EXACT
    plain: Tensor = functional.resize(
        target[None].float() if not floats else target[None], [new_height, new_width], interpolation=mode
    )
    return plain[0].to(target.dtype)


def augmented(image: Tensor, target: Any, augmentation: Callable[..., Any]) -> tuple[Tensor, Any]:
    """Return the image and its target after the same random transforms; boxes that a crop has removed are left out."""
    if not lies_on(target, image):
        return augmentation(image), target
    from torchvision import tv_tensors

    picture = tv_tensors.Image(image)
    if isinstance(target, Tensor):
        changed, mask = augmentation(picture, tv_tensors.Mask(target))
        return changed.as_subclass(Tensor), mask.as_subclass(Tensor)
    size = (int(image.shape[-2]), int(image.shape[-1]))
    boxes = tv_tensors.BoundingBoxes(target["boxes"].float(), format="XYXY", canvas_size=size)
    changed, moved = augmentation(picture, boxes)
    plain = moved.as_subclass(Tensor)
    stays = ((plain[:, 2:] - plain[:, :2]) >= SMALLEST_BOX).all(dim=1)
    kept = {
        name: part[stays] if isinstance(part, Tensor) and len(part) == len(stays) else part
        for name, part in target.items()
    }
    return changed.as_subclass(Tensor), {**kept, "boxes": plain[stays]}
