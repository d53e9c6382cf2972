"""Task-batched layers against torch's own, one task at a time."""

import torch
from torch import nn
from torch.func import functional_call

from metarun.backbones.conv4 import Conv4
from metarun.backbones.per_task import PerTask
from metarun.config.schema import CHOICES
from metarun.nn.batch_norm import MODES, normalise_by, query_outputs, scratch_buffers
from metarun.nn.layers import BatchNorm2d, Conv2d, Linear, fold, unfold


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_conv_and_linear_with_a_weight_per_task_equal_torch_on_each_task() -> None:
    torch.manual_seed(0)
    x, conv, linear = doubles(3, 5, 2, 6, 6), Conv2d(2, 4, 3, padding=1, stride=2), Linear(4 * 9, 7)
    weights = {"weight": doubles(3, 4, 2, 3, 3), "bias": doubles(3, 4)}
    head = {"weight": doubles(3, 7, 36), "bias": doubles(3, 7)}
    features = unfold(functional_call(conv, weights, (fold(x),)), 3)
    out = functional_call(linear, head, (features,))
    for t in range(3):
        alone = nn.functional.conv2d(x[t], weights["weight"][t], weights["bias"][t], 2, 1).permute(0, 2, 3, 1).flatten(1)
        torch.testing.assert_close(features[t], alone)
        torch.testing.assert_close(out[t], alone @ head["weight"][t].T + head["bias"][t])


def test_batch_norm_treats_tasks_apart_and_tracks_them_as_one_after_another() -> None:
    torch.manual_seed(0)
    x, ours, theirs = doubles(3, 5, 2, 4, 4), BatchNorm2d(2).double(), nn.BatchNorm2d(2).double()
    weights = {"weight": doubles(3, 2), "bias": doubles(3, 2)}
    out = functional_call(ours, weights, (fold(x),)).unflatten(1, (3, 2)).movedim(1, 0)
    for t in range(3):
        theirs_t = functional_call(theirs, {name: value[t] for name, value in weights.items()}, (x[t],))
        torch.testing.assert_close(out[t], theirs_t)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_conv4_and_a_wrapped_foreign_network_give_each_task_its_own_output() -> None:
    torch.manual_seed(0)
    foreign = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 5))
    for backbone in (Conv4(1, 8, widths=(3, 4)), Conv4(1, 8, (3, 4), "stride", "mean", scale=False), PerTask(foreign, 1, 8)):
        x = doubles(3, 5, 1, 8, 8)
        weights = {name: value + 0.1 * doubles(3, *value.shape) for name, value in backbone.double().named_parameters()}
        with normalise_by(backbone, "batch"):
            together = functional_call(backbone, {**weights, **scratch_buffers(backbone, 3)}, (x,))
            assert together.shape == (3, 5, backbone.out_features)
            for t in range(3):
                alone = functional_call(backbone, {n: w[t] for n, w in weights.items()}, (x[t : t + 1],))
                torch.testing.assert_close(together[t], alone[0])


class Norm(nn.Module):
    """Only a batch norm, so that its statistics can be seen in its output."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = BatchNorm2d(1, eps=1e-12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return unfold(self.norm(fold(x)), x.shape[0])


def test_each_mode_normalises_by_the_statistics_it_names() -> None:
    torch.manual_seed(0)
    net = Norm().double()
    net.norm.running_mean.fill_(0.3)  # type: ignore[union-attr]
    net.norm.running_var.fill_(2.0)  # type: ignore[union-attr]
    support, query = torch.randn(2, 4, 1, 3, 3).double(), 2 + torch.randn(2, 5, 1, 3, 3).double()
    weights = {name: value.expand(2, *value.shape) for name, value in net.named_parameters()}

    def by(reference: torch.Tensor) -> torch.Tensor:
        return (query - reference.mean()) / reference.std(correction=0)

    assert CHOICES["protocol.batch_norm"] == (None, *MODES)  # the command line offers what there is
    out = {mode: query_outputs(net, weights, support, query, mode, 2).view_as(query) for mode in MODES}
    torch.testing.assert_close(out["running"], (query - 0.3) / 2**0.5)
    for t in range(2):
        torch.testing.assert_close(out["query"][t], by(query[t])[t])
        torch.testing.assert_close(out["support"][t], by(support[t])[t])
        for i in range(5):
            torch.testing.assert_close(out["support+one"][t, i], by(torch.cat([support[t], query[t, i : i + 1]]))[t, i])
