"""torchvision's ResNet-18 and ResNet-50 (He et al. 2015). Imported only when a model is built: it loads torch."""

from __future__ import annotations

from torch import nn
from torchvision import models


def build(variant: str, classes: int) -> nn.Module:
    net: nn.Module = {"resnet18": models.resnet18, "resnet50": models.resnet50}[variant](num_classes=classes)
    return net
