"""The fully connected backbone against plain torch modules, one task at a time."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from metarun.backbones.mlp import MLP
from metarun.errors import UserError
from metarun.nn.batch_norm import query_outputs, scratch_buffers

WIDTHS = (7, 5, 4)


def plain(pixels: int) -> nn.Sequential:
    """The same layers and the same order of parameters in torch's own modules, on (n, C, H, W)."""
    sizes = zip((pixels, *WIDTHS), WIDTHS, strict=False)
    layers = [layer for i, o in sizes for layer in (nn.Linear(i, o), nn.BatchNorm1d(o, eps=1e-3), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers).double()


@pytest.mark.parametrize("statistics", ["query", "running", "support+one"])
def test_tasks_with_their_own_weights_equal_plain_networks(statistics: str) -> None:
    torch.manual_seed(0)
    ours, theirs = MLP(2, 3, WIDTHS, eps=1e-3).double(), plain(18)
    for layer, norm in zip(ours.layers, [layer for layer in theirs if isinstance(layer, nn.BatchNorm1d)], strict=True):
        norm.load_state_dict(
            {**norm.state_dict(), "running_mean": torch.randn_like(norm.bias), "running_var": 1 + torch.rand_like(norm.bias)}
        )
        layer.norm.running_mean.copy_(norm.running_mean)
        layer.norm.running_var.copy_(norm.running_var)
    theirs.train(statistics != "running")
    support, query = (torch.randn(3, n, 2, 3, 3, dtype=torch.float64) for n in (4, 6))
    weights = {name: torch.randn(3, *value.shape, dtype=torch.float64, requires_grad=True) for name, value in ours.named_parameters()}
    out = query_outputs(ours, weights, support, query, statistics, 3)
    assert out.shape == (3, 6, ours.out_features)
    pull = torch.randn_like(out)
    gradients = torch.autograd.grad((out * pull).sum(), list(weights.values()))
    buffers = scratch_buffers(theirs)
    for t in range(3):
        own = {name: value[t] for name, value in zip(dict(theirs.named_parameters()), weights.values(), strict=True)}

        def answer(x: torch.Tensor, own: dict[str, torch.Tensor] = own) -> torch.Tensor:
            return functional_call(theirs, {**own, **{name: value.clone() for name, value in buffers.items()}}, (x,))

        if statistics == "support+one":
            alone = torch.cat([answer(torch.cat([support[t], query[t, i : i + 1]]))[-1:] for i in range(6)])
        else:
            alone = answer(query[t])
        torch.testing.assert_close(out[t], alone, rtol=1e-10, atol=1e-10)
        for ours_t, theirs_t in zip(gradients, torch.autograd.grad((alone * pull[t]).sum(), list(own.values())), strict=True):
            torch.testing.assert_close(ours_t[t], theirs_t, rtol=1e-9, atol=1e-9)


def test_it_starts_as_the_paper_says_and_refuses_nonsense() -> None:
    torch.manual_seed(0)
    backbone = MLP(1, 28, scale=False)
    assert [tuple(layer.linear.weight.shape) for layer in backbone.layers] == [(256, 784), (128, 256), (64, 128), (64, 64)]
    weight = backbone.layers[0].linear.weight
    assert weight.abs().max() <= 0.02 and 0.0085 < weight.std() < 0.0091  # cutting at two takes 0.88 of the deviation
    assert not any(
        name.endswith("norm.weight") or (name.endswith("linear.bias") and value.any()) for name, value in backbone.named_parameters()
    )
    for key, wrong in (("widths", {"widths": []}), ("eps", {"eps": 0.0})):
        with pytest.raises(UserError, match=f"backbone.{key}"):
            MLP(1, 28, **wrong)  # type: ignore[arg-type]
