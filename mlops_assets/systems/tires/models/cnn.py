"""A plain convolutional network with batch normalisation, 0.4 M weights. Imported only when a model is built: it loads torch."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

WIDTHS = (16, 32, 64, 128, 256)
DROPOUT = 0.2


def _block(before: int, after: int) -> list[nn.Module]:
    """Half the side: the stride does it, so that no pixel of the large maps is computed in vain."""
    return [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


def build(variant: str, classes: int) -> nn.Module:
    blocks = [layer for before, after in zip((3, *WIDTHS), WIDTHS, strict=False) for layer in _block(before, after)]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(DROPOUT), nn.Linear(WIDTHS[-1], classes))
    return nn.Sequential(OrderedDict(features=nn.Sequential(*blocks), classifier=classifier))
