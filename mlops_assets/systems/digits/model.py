"""The network that reads a digit, and how its training digits are bent. Imported only where a model is built: it loads torch.

A small residual-free CNN: a digit is 28 x 28 pixels, prepared (`strokes.py`), so that there is little left to learn but the forms. Belongs
here: the architecture, augmentation that imitates drawing. Does not belong here: the run (`training/trainer.py`), data.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, interpolate, max_pool2d

CLASSES = 10
#: Degrees, share, pixels of 28: how far a training digit is turned, sized and slanted, moved and bent at `augment` 1.
TURN, SIZE, SLANT, MOVE, BEND = 12.0, 0.12, 0.2, 1.0, 1.6
#: Share of the training digits that are made thicker, and thinner, and that have a gap.
THICKER, THINNER, GAP = 0.15, 0.15, 0.25


def _block(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


class ChannelsLast(nn.Module):
    """From here on a pixel's channels lie side by side: on processors, small convolutions train twice as fast."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.contiguous(memory_format=torch.channels_last)


def build(width: int, dropout: float) -> nn.Module:
    """float [batch, 1, 28, 28] -> logits [batch, 10]. Strides, not pooling: no pixel of the large maps is computed in vain."""
    layers = [
        *_block(1, width),
        ChannelsLast(),
        *_block(width, 2 * width, stride=2),
        *_block(2 * width, 2 * width),
        *_block(2 * width, 4 * width, stride=2),
        *_block(4 * width, 4 * width),
    ]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * width, CLASSES))
    return nn.Sequential(OrderedDict(features=nn.Sequential(*layers), classifier=head))


class Classifier(nn.Module):
    """A network behind its scaling, as `training/trainer.py` wants it: uint8 [batch, 28, 28] -> logits, bent only while it trains.

    Bending happens here and not in the data set: here it comes from the random state that checkpoints restore.
    """

    def __init__(self, net: nn.Module, strength: float = 0.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.net, self.strength, self.label_smoothing = net, strength, label_smoothing

    def forward(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        shown = images.unsqueeze(1).float() / 255
        if self.training and labels is not None and self.strength:
            shown = drawn_otherwise(shown, self.strength)
        logits = self.net(shown - 0.5)
        if labels is None:
            return {"logits": logits}
        return {"logits": logits, "loss": cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)}


def drawn_otherwise(images: Tensor, strength: float) -> Tensor:
    """float [batch, 1, 28, 28] in 0..1: each turned, sized, slanted, moved and bent like another drawing of the same digit; on some the
    line is thicker, thinner or interrupted. From torch's random state, the whole batch at once."""
    shown = grid_sample(images, _places(len(images), images.shape[-1], strength).to(images.device), align_corners=False)
    kind = torch.rand(len(images), 1, 1, 1, device=images.device)
    thicker = max_pool2d(shown, 2, stride=1, padding=1)[:, :, : shown.shape[2], : shown.shape[3]]
    thinner = 1 - max_pool2d(1 - shown, 2, stride=1, padding=1)[:, :, : shown.shape[2], : shown.shape[3]]
    shown = torch.where(kind < THICKER, thicker, torch.where(kind > 1 - THINNER, 0.5 * (thinner + shown), shown))
    return shown * _gaps(len(images), images.shape[-1]).to(images.device)


def _places(count: int, side: int, strength: float) -> Tensor:
    """Where each pixel is taken from, [batch, side, side, 2] in -1..1."""
    even = strength * (2 * torch.rand(6, count) - 1)
    angle, slant = math.radians(TURN) * even[0], SLANT * even[1]
    wide, tall = 1 + SIZE * even[2], 1 + SIZE * even[3]
    move = 2 * MOVE / side * even[4:6]
    rows = [angle.cos() * wide, (slant - angle.sin()) * tall, move[0], angle.sin() * wide, angle.cos() * tall, move[1]]
    grid = affine_grid(torch.stack(rows, 1).view(count, 2, 3), [count, 1, side, side], align_corners=False)
    coarse = torch.randn(count, 2, 5, 5) * (strength * BEND / side)
    bent = interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)
    return grid + bent.permute(0, 2, 3, 1)


def _gaps(count: int, side: int) -> Tensor:
    """[batch, 1, side, side]: 1, but 0 in a small disc of some pictures."""
    at = torch.arange(side).float()
    x, y = torch.rand(2, count, 1, 1).mul(side).unbind(0)
    reach = torch.where(torch.rand(count, 1, 1) < GAP, 1.0 + 2 * torch.rand(count, 1, 1), torch.zeros(count, 1, 1))
    apart = (at.view(1, 1, side) - x) ** 2 + (at.view(1, side, 1) - y) ** 2
    return (apart >= reach**2).float().unsqueeze(1)
