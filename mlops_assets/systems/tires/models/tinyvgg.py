"""TinyVGG: VGG's pattern (two convolutions of 3 x 3, then pooling) in two blocks. Imported only when a model is built: it loads torch."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

WIDTH = 32
#: The feature map is averaged to this many cells a side, so that the classifier fits images of any size.
CELLS = 4


def _block(before: int, after: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]


def build(variant: str, classes: int) -> nn.Module:
    features = nn.Sequential(nn.AvgPool2d(2), *_block(3, WIDTH), *_block(WIDTH, WIDTH))
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(CELLS), nn.Flatten(), nn.Linear(WIDTH * CELLS**2, classes))
    return nn.Sequential(OrderedDict(features=features, classifier=classifier))
