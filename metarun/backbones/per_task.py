"""Any `nn.Module` as a backbone: torchvision's models, or a user's own."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun.backbones.base import Backbone
from metarun.errors import UserError


class PerTask(Backbone):
    """Makes a backbone of `module`, which maps (n, C, H, W) to (n, D), by looping over tasks.

    in_channels, image_size: of the images; channels: what `module` takes, a grey image being repeated. Raises UserError if
    `module` cannot take such images or does not answer with (n, D).
    """

    def __init__(self, module: nn.Module, in_channels: int, image_size: int, channels: int | None = None) -> None:
        super().__init__()
        self.module = module
        self.in_channels, self.channels = in_channels, channels or in_channels
        self.shapes = {name: value.shape for name, value in self._state().items()}
        try:
            with torch.no_grad():
                out = module.eval()(torch.zeros(2, self.channels, image_size, image_size))
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"backbone.module: cannot take images of {self.channels}x{image_size}x{image_size} ({reason})") from error
        if not isinstance(out, Tensor) or out.dim() != 2:
            raise UserError("backbone.module: must answer with one row of features per image, (n, D)")
        self.out_features = self.out_channels = out.shape[1]
        module.train()

    def _state(self) -> dict[str, Tensor]:
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != self.channels:
            x = x.expand(-1, -1, self.channels, -1, -1)
        state = self._state()
        own = {name for name, value in state.items() if value.shape != self.shapes[name]}
        if not own:  # each by itself all the same: in training a batch norm would mix them
            return torch.stack([self.module(images) for images in x])
        tasks = [{name: value[t] if name in own else value for name, value in state.items()} for t in range(x.shape[0])]
        return torch.stack([functional_call(self.module, task, (images,)) for task, images in zip(tasks, x, strict=True)])
