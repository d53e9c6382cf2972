"""The ResNet-18 of few-shot learning on images of 84 pixels (SimpleShot's code, Wang et al. 2019, arXiv:1911.04623)."""

from torch import nn
from torchvision.models import resnet18


def small_stem() -> nn.Module:
    """torchvision's ResNet-18 with a convolution 3x3 in place of the first one, which steps by two, and of the pooling after it.

    It maps (n, 3, H, W) to the mean over the last map, (n, 512).
    """
    model = resnet18()
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool, model.fc = nn.Identity(), nn.Identity()
    return model
