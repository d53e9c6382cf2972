"""Networks against their published sizes, against plain torch, and with weights from a file."""

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torchvision
from helpers import CONF, Metarun, composed, random_episode, spec
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metarun.algorithms.maml import MAML
from metarun.backbones.base import Backbone
from metarun.backbones.conv4 import Conv4
from metarun.backbones.mlp import MLP
from metarun.backbones.per_task import PerTask
from metarun.backbones.pretrained import timm_model, torchvision_model
from metarun.backbones.r2d2 import R2D2
from metarun.backbones.resnet12 import DropBlock, ResNet12
from metarun.backbones.wrn28_10 import WideResNet
from metarun.errors import UserError
from metarun.nn.batch_norm import normalise_by, scratch_buffers


def conv(inputs: int, outputs: int, size: int = 3) -> int:
    return inputs * outputs * size**2


def conv4(*widths: int, scale: bool = True) -> int:
    return sum(conv(i, o) + o * (3 if scale else 2) for i, o in pairwise((3, *widths)))


def mlp(*widths: int) -> int:
    return sum(i * o + 2 * o for i, o in pairwise((3 * 84 * 84, *widths)))


def resnet12(*widths: int) -> int:
    return sum(conv(i, o) + 2 * conv(o, o) + conv(i, o, 1) + 4 * 2 * o for i, o in pairwise((3, *widths)))


def resnet18(stem: int) -> int:
    first = conv(3, 64, stem) + 2 * 64 + 4 * (conv(64, 64) + 2 * 64)
    return first + sum(conv(i, o) + 3 * conv(o, o) + conv(i, o, 1) + 5 * 2 * o for i, o in pairwise((64, 128, 256, 512)))


def wide(depth: int, factor: int) -> int:
    widths, more = [16, 16 * factor, 32 * factor, 64 * factor], (depth - 4) // 6 - 1
    stages = (conv(i, o) + conv(o, o) + conv(i, o, 1) + 2 * i + 2 * o + more * (2 * conv(o, o) + 4 * o) for i, o in pairwise(widths))
    return conv(3, 16) + sum(stages) + 2 * widths[-1]


# Of colour images of 84 pixels: parameters, millions of them as papers give them, convolutions larger than 1x1, (h·w, channels);
# then (h·w, channels) of grey images of 28.
Size = tuple[int, float | None, int, tuple[int, int], tuple[int, int]]
SIZES: dict[str, Size] = {
    "conv4": (conv4(64, 64, 64, 64), 0.113, 4, (25, 64), (1, 64)),
    "conv4_32": (conv4(32, 32, 32, 32, scale=False), None, 4, (25, 32), (1, 32)),
    "conv4_cavia": (conv4(32, 32, 32, 32) + 100 + 101 * 64, None, 4, (25, 32), (1, 32)),
    "conv4_chen": (conv4(64, 64, 64, 64), 0.113, 4, (25, 64), (1, 64)),
    "conv4_maml_omniglot": (conv4(64, 64, 64, 64, scale=False), None, 4, (1, 64), (1, 64)),
    "conv4_maml_plus_plus": (conv4(48, 48, 48, 48), None, 4, (25, 48), (1, 48)),
    "conv4_ravi": (conv4(64, 64, 64, 64), 0.113, 4, (25, 64), (1, 64)),
    "conv4_relation_net": (conv4(64, 64, 64, 64), 0.113, 4, (19 * 19, 64), (5 * 5, 64)),
    "conv4_reptile_miniimagenet": (conv4(32, 32, 32, 32), None, 4, (36, 32), (4, 32)),
    "conv4_reptile_omniglot": (conv4(64, 64, 64, 64), 0.113, 4, (36, 64), (4, 64)),
    "mlp_maml_omniglot": (mlp(256, 128, 64, 64), None, 0, (1, 64), (1, 64)),
    "r2d2": (conv4(96, 192, 384, 512), None, 4, (1, 72576), (1, 3584)),
    "r2d2_64": (conv4(64, 64, 64, 64), 0.113, 4, (1, 81 * 128), (1, 4 * 128)),
    "r2d2_metaoptnet": (conv4(96, 192, 384, 512), None, 4, (1, 51200), (1, 9 * 384 + 512)),
    "resnet12": (resnet12(64, 160, 320, 640), 12.4, 12, (25, 640), (1, 640)),
    "resnet12_512": (resnet12(64, 128, 256, 512), 8.0, 12, (1, 512), (1, 512)),
    "resnet12_mean": (resnet12(64, 160, 320, 640), 12.4, 12, (1, 640), (1, 640)),
    "resnet18": (resnet18(3), 11.2, 17, (1, 512), (1, 512)),
    "resnet18_chen": (resnet18(7), 11.2, 17, (1, 512), (1, 512)),
    "timm": (resnet18(7), 11.2, 17, (1, 512), (1, 512)),
    "torchvision": (resnet18(7), 11.2, 17, (1, 512), (1, 512)),
    "wrn28_10": (wide(28, 10), 36.5, 25, (1, 640), (1, 640)),
}


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("backbone/*.yaml")))
def test_every_backbone_has_its_published_size(name: str) -> None:
    if name == "timm":
        pytest.importorskip("timm")
    parameters, millions, convolutions, *maps = SIZES[name]
    cfg = composed(f"backbone={name}")["backbone"]
    for channels, size, (places, width) in ((3, 84, maps[0]), (1, 28, maps[1])):
        # On `meta` there are shapes without their numbers, but no autocast, which the smallest networks ask for, and no statistics.
        with torch.device("cpu" if name.startswith(("conv4", "mlp")) else "meta"):
            backbone = instantiate(cfg, in_channels=channels, image_size=size, _convert_="all").eval()
            out = backbone(torch.zeros(1, 2, channels, size, size))
        assert out.shape == (1, 2, places * width)
        assert (backbone.out_features, backbone.out_channels) == (places * width, width)
        kernels = [module.kernel_size[0] for module in backbone.modules() if isinstance(module, nn.Conv2d)]
        assert sum(kernel > 1 for kernel in kernels) == convolutions
        if channels == 3:
            assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters
            assert millions is None or parameters / 1e6 == pytest.approx(millions, abs=0.05 if millions > 1 else 0.0005)


def norm(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    return F.batch_norm(x, None, None, layer.weight, layer.bias, True)


def plain_resnet12(net: ResNet12, x: Tensor) -> Tensor:
    for block in net.blocks:
        out = x
        for i, (conv, bn) in enumerate(zip(block.convs, block.norms, strict=True)):
            out = norm(F.conv2d(out, conv.weight, padding=1), bn)
            out = F.leaky_relu(out, 0.1) if i < 2 else out
        out = out + norm(F.conv2d(x, block.shortcut[0].weight), block.shortcut[1])
        x = F.max_pool2d(F.leaky_relu(out, 0.1), 2)
    return x.permute(0, 2, 3, 1).flatten(1)


def plain_wide(net: WideResNet, x: Tensor) -> Tensor:
    x = F.conv2d(x, net.stem.weight, padding=1)
    for i, block in enumerate(net.blocks):
        active, stride = norm(x, block.norm1).relu(), 2 if i in (2, 4) else 1
        out = F.conv2d(active, block.conv1.weight, padding=1, stride=stride)
        shortcut = x if i % 2 else F.conv2d(active, block.shortcut.weight, stride=stride)
        x = F.conv2d(norm(out, block.norm2).relu(), block.conv2.weight, padding=1) + shortcut
    return norm(x, net.norm).relu().mean((2, 3))


def plain_r2d2(net: R2D2, x: Tensor) -> Tensor:
    for i, block in enumerate(net.blocks):
        before = x
        x = norm(F.conv2d(x, block.conv.weight, block.conv.bias, padding=1), block.norm)
        x = F.leaky_relu(F.max_pool2d(x, 2, 1 if i == 3 and net.last_stride == 1 else 2), 0.1 if i < 3 or net.last_stride == 1 else 1.0)
    before = F.max_pool2d(before, 2, 1) if net.last_stride == 1 else before
    return torch.cat([before.permute(0, 2, 3, 1).flatten(1), x.permute(0, 2, 3, 1).flatten(1)], 1)


def plain_relation(net: Conv4, x: Tensor) -> Tensor:
    for i, block in enumerate(net.blocks):
        x = norm(F.conv2d(x, block.conv.weight, block.conv.bias, padding=1 if i > 0 else 0), block.norm).relu()
        x = F.max_pool2d(x, 2) if i == 0 else x
    return x.permute(0, 2, 3, 1).flatten(1)


NETWORKS: dict[str, tuple[Callable[[], Backbone], Callable[..., Tensor]]] = {
    "resnet12": (lambda: ResNet12(2, 11, (3, 4), drop=0), plain_resnet12),
    "wide": (lambda: WideResNet(2, 6, 16, 2), plain_wide),
    "r2d2": (lambda: R2D2(2, 16, (3, 4, 3, 2), dropout=(0, 0)), plain_r2d2),
    "r2d2 of MetaOptNet": (lambda: R2D2(2, 17, (3, 4, 3, 2), 2, (0, 0), last_relu=False), plain_r2d2),
    "conv4 of RelationNet": (lambda: Conv4(2, 9, (3, 4), padding=(0, 1), pooled=1), plain_relation),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_tasks_with_their_own_weights_equal_plain_torch_on_each(name: str) -> None:
    """Features, their gradients and the gradients of those, which a second-order method needs."""
    torch.manual_seed(0)
    make, plain = NETWORKS[name]
    net = make().double()
    size = {"resnet12": 11, "wide": 6, "r2d2": 16, "r2d2 of MetaOptNet": 17, "conv4 of RelationNet": 9}[name]
    x = torch.randn(3, 4, 2, size, size, dtype=torch.float64)
    weights = {key: value.detach() + 0.1 * torch.randn(3, *value.shape).double() for key, value in net.named_parameters()}
    target = torch.randn(3, 4, net.out_features).double()

    def twice(outputs: Callable[[Mapping[str, Tensor]], Tensor]) -> tuple[Tensor, ...]:
        leaves = {key: value.clone().requires_grad_() for key, value in weights.items()}
        out = outputs(leaves)
        first = torch.autograd.grad((out * target).square().sum(), list(leaves.values()), create_graph=True)
        return out, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), list(leaves.values()), allow_unused=True)

    def each(leaves: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([by_hand(net, plain, {key: value[t] for key, value in leaves.items()}, x[t]) for t in range(3)])

    with normalise_by(net, "batch"):
        ours = twice(lambda leaves: functional_call(net, {**leaves, **scratch_buffers(net, 3)}, (x,)))
    for mine, expected in zip(ours, twice(each), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-7, atol=1e-7)


def by_hand(net: Backbone, plain: Callable[..., Tensor], weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """`plain(net, x)` with other weights in the network."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return plain(self.net, x)

    return functional_call(Plain(), {f"net.{key}": value for key, value in weights.items()}, (x,))


SHARED: dict[str, Callable[[], Backbone]] = {
    **{f"conv4 {how}": lambda how=how: Conv4(2, 16, (3, 4), how) for how in ("pool", "pool_ceil", "stride")},  # type: ignore[misc]
    "conv4 with FiLM": lambda: Conv4(2, 16, (3, 4), film_block=1, context=5, init="kaiming"),
    "conv4 of RelationNet": lambda: Conv4(2, 16, (3, 4), padding=(0, 1), pooled=1, features="mean", scale=False),
    "resnet12": lambda: ResNet12(2, 16, (3, 4), drop=0),
    "wide": lambda: WideResNet(2, 16, 10, 1),
    "r2d2": lambda: R2D2(2, 16, (3, 4, 3, 2), dropout=(0, 0)),
    "mlp": lambda: MLP(2, 16, (5, 4)),
    "per_task": lambda: PerTask(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()), 2, 16),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SHARED)
def test_tasks_that_share_weights_equal_a_loop_over_them(name: str, training: bool) -> None:
    """Features, their gradients and, in training, the running statistics; a task by its own batch's alone."""
    torch.manual_seed(0)
    net = SHARED[name]().double()
    for key, value in net.named_parameters():
        value.data.add_(torch.randn_like(value), alpha=1.0 if key.endswith("context") else 0.1)
    x, target = torch.randn(3, 4, 2, 16, 16).double(), torch.randn(3, 4, net.out_features).double()
    x *= torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1, 1)
    learned = [value for value in net.parameters() if value.requires_grad]
    before, found = deepcopy(net.state_dict()), []
    for compute in (lambda: net(x), lambda: torch.cat([net(each[None]) for each in x])):
        net.load_state_dict(before)
        out = compute() if net.train(training) else None
        assert out is not None
        found.append([out, *torch.autograd.grad((out * target).square().sum(), learned), *(buffer.clone() for buffer in net.buffers())])
    for ours, expected in zip(*found, strict=True):
        if ours.is_floating_point():  # not a count of batches
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", SHARED)
def test_what_are_no_images_of_tasks_is_said_in_a_line(name: str) -> None:
    net = SHARED[name]()
    for shape in ((25, 2, 16, 16), (3, 4, 1, 16, 16), (3, 4, 4, 16, 16)):
        with pytest.raises(ValueError, match=re.escape(f"expected images (T, n, 2, H, W), got {shape}")):
            net(torch.zeros(shape))


def test_drop_block_drops_squares_at_the_rate_of_its_ramp() -> None:
    torch.manual_seed(0)
    layer, x = DropBlock(16, 0.3, 5, ramp=100), torch.ones(500, 16, 9, 9)
    for passes, rate in ((0, 0.0), (50, 0.15), (100, 0.3), (1000, 0.3)):
        layer.passes.fill_(passes)
        mask, gamma = layer.mask(x), rate / 25 * 81 / 25
        covering = torch.tensor([min(i, 4) - max(0, i - 4) + 1 for i in range(9)])  # corners, along a line, whose square reaches pixel i
        expected = (1 - gamma) ** (covering[:, None] * covering).float()
        spread = (expected * (1 - expected) / 8000).sqrt()
        assert ((mask.mean((0, 1)) - expected).abs() <= 5 * spread).all()
    for image in 1 - mask[:4].flatten(0, 1):  # what is dropped is made of squares
        squares = torch.zeros_like(image)
        for i in range(5):
            for j in range(5):
                if image[i : i + 5, j : j + 5].all():
                    squares[i : i + 5, j : j + 5] = 1
        assert torch.equal(image, squares)


def test_drop_block_scales_up_each_task_and_rests_in_evaluation() -> None:
    torch.manual_seed(0)
    layer, x = DropBlock(4, 0.5, 3, ramp=1), torch.ones(6, 3 * 4, 7, 7, dtype=torch.float64)
    out = layer(x)
    assert (out == 0).any() and layer.passes == 1
    for task in out.unflatten(1, (3, 4)).unbind(1):
        torch.testing.assert_close(task.mean(), torch.ones((), dtype=torch.float64))
        assert len(task.unique()) == 2
    assert layer.eval()(x) is x and layer.passes == 1


def test_dropping_networks_count_their_passes_and_are_fixed_in_evaluation() -> None:
    torch.manual_seed(0)
    net, x = ResNet12(1, 28, (4, 4, 4, 4), drop=0.5, ramp=1), torch.randn(3, 5, 1, 28, 28)
    weights = {key: value.expand(3, *value.shape) for key, value in net.named_parameters()}
    assert functional_call(net, {**weights, **scratch_buffers(net, 3)}, (x,)).shape == (3, 5, 4)
    passes = [module.passes for module in net.modules() if isinstance(module, DropBlock)]
    assert len(passes) == 2 and not any(passes)
    net(x[:1])
    assert passes == [1, 1]
    for other in (net, R2D2(1, 28, (4, 4, 4, 4), dropout=(0.5, 0.5)), Conv4(1, 28, (4, 4), dropout=0.5), WideResNet(1, 28, 10, 1, 0.5)):
        with normalise_by(other, "running"):
            assert not torch.equal(other(x[:1]), other(x[:1]))
        other.eval()
        assert torch.equal(other(x[:1]), other(x[:1]))


def noisy() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2), nn.Flatten())


@pytest.mark.parametrize(
    "make",
    [
        lambda: R2D2(1, 16, (4, 4, 4, 4), dropout=(0.5, 0.5)),
        lambda: ResNet12(1, 16, (4, 4), drop=0.5, block_size=2, ramp=1),
        lambda: Conv4(1, 16, (4, 4), dropout=0.5),
        lambda: WideResNet(1, 16, 10, 1, 0.5),
        lambda: PerTask(noisy(), 1, 16),
    ],
    ids=["r2d2", "resnet12", "conv4", "wide", "per_task"],
)
def test_what_is_computed_again_drops_the_same_numbers(make: Callable[[], Backbone]) -> None:
    def gradient(recompute: bool) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        learner, episode = MAML(make(), spec(3), 0.1, 2, recompute=recompute).double(), random_episode(2, 3, 2, 3)
        learner.meta_loss(episode)[0].mean().backward()
        return torch.cat([value.grad.flatten() for value in learner.parameters() if value.grad is not None]), torch.rand(1)

    for again, once in zip(gradient(True), gradient(False), strict=True):  # and the random numbers afterwards are the same ones
        torch.testing.assert_close(again, once, rtol=1e-9, atol=1e-12)


def test_fan_out_is_relation_nets_distribution() -> None:
    torch.manual_seed(0)
    block = Conv4(3, 28, (64, 128), init="fan_out").blocks[1]
    assert block.conv.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.01)
    assert not block.conv.bias.any()


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Conv4(1, 28, padding=(1, 1)), "padding"),
        (lambda: Conv4(1, 28, padding=-1), "padding"),
        (lambda: Conv4(1, 28, pooled=5), "pooled"),
        (lambda: Conv4(1, 28, dropout=1.0), "dropout"),
        (lambda: Conv4(1, 28, padding=0), "widths"),
        (lambda: ResNet12(1, 15), "image_size"),
        (lambda: ResNet12(1, 28, drop=1.0), "drop"),
        (lambda: R2D2(1, 15), "image_size"),
        (lambda: R2D2(1, 28, dropout=(0.1,)), "dropout"),
        (lambda: WideResNet(1, 28, depth=27), "depth"),
    ],
)
def test_impossible_networks_are_refused(make: Callable[[], Backbone], key: str) -> None:
    with pytest.raises(UserError, match=rf"backbone\.{key}: "):
        make()


SMALL = "shufflenet_v2_x0_5"


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = torchvision.models.get_model(SMALL, num_classes=7).double().eval(), torch.randn(2, 3, 1, 32, 32, dtype=torch.float64)
    state, path = model.state_dict(), tmp_path / "weights.pt"
    model.fc = nn.Identity()
    expected = model(x.flatten(0, 1).expand(-1, 3, -1, -1)).unflatten(0, (2, 3))
    headless = {key: value for key, value in state.items() if not key.startswith("fc.")}
    for saved in (state, headless, {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}):
        torch.save(saved, path)
        backbone = PerTask(torchvision_model(SMALL, str(path)), 1, 32, channels=3).double().eval()
        torch.testing.assert_close(backbone(x), expected)


def test_weights_come_from_safetensors(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    model = torchvision.models.get_model(SMALL)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    loaded = torchvision_model(SMALL, str(tmp_path / "weights.safetensors"))
    assert torch.equal(loaded.conv5[0].weight, model.conv5[0].weight)


def test_timms_models_lose_their_classifier(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model, x = timm.create_model("resnet10t", num_classes=7).double().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    loaded = timm_model("resnet10t", str(tmp_path / "weights.pth")).double().eval()
    torch.testing.assert_close(loaded(x), model.forward_head(model.forward_features(x), pre_logits=True))
    with pytest.raises(UserError, match=r"backbone\.module\.name: resnet10x is not allowed; did you mean resnet10t"):
        timm_model("resnet10x")


def test_files_and_names_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, path = torchvision.models.get_model(SMALL).state_dict(), tmp_path / "weights.pt"
    first = next(iter(state))
    problems = {
        "is no state dict": [torch.zeros(3), {}, {"a": 1.0}],
        f"has no {first}": [{key: value for key, value in state.items() if key != first}],
        "has no conv1.0.weight and ": [{"a": torch.zeros(1)}],
        "has an unknown extra.weight": [{**state, "extra.weight": torch.zeros(1)}],
        f"has another shape of {first}": [{**state, first: torch.zeros(1)}],
        "cannot be read as a state dict": [PerTask],  # unpickling it would run code
    }
    for problem, contents in problems.items():
        for content in contents:
            torch.save(content, path)
            with pytest.raises(UserError, match=r"^backbone\.module\.weights: [^\n]*" + problem + r"[^\n]*$"):
                torchvision_model(SMALL, str(path))
    path.write_bytes(b"no weights")
    for file, problem in ((path, "cannot be read"), (tmp_path, "is no file"), (tmp_path / "x", "is no file")):
        with pytest.raises(UserError, match=rf"^backbone\.module\.weights: .*{problem}"):
            torchvision_model(SMALL, str(file))
    for name, problem in (("resnet81", "did you mean resnet18?"), ("googlenet", "expected a"), ("squeezenet1_0", "linear layer")):
        with pytest.raises(UserError, match=rf"^backbone\.module\.name: {name} is not allowed; .*{problem[:-1]}"):
            torchvision_model(name)
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match=r"^backbone\.module: timm is not installed; pip install 'metarun\[timm\]'"):
        timm_model("resnet18")


def test_a_wrong_file_is_one_line_of_the_command(metarun: Metarun) -> None:
    outcome = metarun("train backbone=torchvision backbone.module.weights=nowhere.pt")
    assert (outcome.code, outcome.err) == (2, "metarun: backbone.module.weights: nowhere.pt is no file\n")
