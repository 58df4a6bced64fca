"""torchvision's EfficientNet-B0 to B2 (Tan and Le 2019). Imported only when a model is built: it loads torch."""

from __future__ import annotations

from torch import nn
from torchvision import models


def build(variant: str, classes: int) -> nn.Module:
    known = {
        "efficientnet_b0": models.efficientnet_b0,
        "efficientnet_b1": models.efficientnet_b1,
        "efficientnet_b2": models.efficientnet_b2,
    }
    net: nn.Module = known[variant](num_classes=classes)
    return net
