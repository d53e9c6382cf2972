"""The other sides of the benchmark: each makes, of a case, what is to be timed.

EasyFSL is used as its tutorials do: `EasySet`, `TaskSampler`, a `DataLoader`, `process_support_set`, its `evaluate`. Where there is a
choice it gets what is faster: no augmentation, images of their own size, the networks of scripts/plain.py, and no worker processes,
which would take their time from the cores that compute.
"""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmark import Case

Run = Callable[[], object]


def has(case: "Case") -> tuple[str, ...]:
    """The sides that have the method."""
    return ("plain", "easyfsl") if case.kind in ("protonet", "supervised", "evaluate") else ("plain",)


def installed() -> bool:
    return find_spec("easyfsl") is not None


def plain(case: "Case", root: Path, threads: int) -> Run:
    import torch
    from plain import MAML, Loader, ProtoNet, Supervised, conv4, resnet12

    torch.set_num_threads(threads)
    load = Loader(root, case.ways, case.shots, case.queries, "L" if case.channels == 1 else "RGB")
    if case.kind == "load":
        return lambda: [load() for _ in range(case.tasks)]
    if case.kind in ("maml", "test"):
        return MAML(load, case.tasks, case.strides, case.steps, case.first_order, case.kind == "test")
    net = resnet12() if case.net == "resnet12" else conv4(channels=case.channels)
    return Supervised(load, net, 640, case.batch) if case.kind == "supervised" else ProtoNet(load, net, case.part)


def easyfsl(case: "Case", root: Path, threads: int) -> Run:
    import torch
    from easyfsl.datasets import EasySet
    from easyfsl.methods import PrototypicalNetworks
    from easyfsl.samplers import TaskSampler
    from easyfsl.utils import evaluate
    from plain import conv4, resnet12
    from torch import nn
    from torch.utils.data import DataLoader, Sampler
    from torchvision import transforms

    torch.set_num_threads(threads)
    Sampler.__init__ = lambda self, data_source=None: None  # type: ignore[method-assign]  # EasyFSL 1.5 passes what newer torch refuses
    folders = sorted(root.iterdir())
    specs = root.parent / f"{root.name}.json"
    specs.write_text(json.dumps({"class_names": [folder.name for folder in folders], "class_roots": [str(folder) for folder in folders]}))
    grey = [transforms.Grayscale()] if case.channels == 1 else []
    data = EasySet(specs, image_size=case.size, transform=transforms.Compose([*grey, transforms.ToTensor()]))
    net = resnet12() if case.net == "resnet12" else conv4(channels=case.channels)
    if case.kind == "supervised":
        net = nn.Sequential(net, nn.Linear(640, len(folders)))
        batches = endless(DataLoader(data, batch_size=case.batch, shuffle=True, drop_last=True))
    else:
        net = PrototypicalNetworks(net)
        sampler = TaskSampler(data, case.ways, case.shots, case.queries, case.part or 10**6)
        loader = DataLoader(data, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)
        if case.kind == "evaluate":
            return lambda: evaluate(net, loader, device="cpu", use_tqdm=False)
        batches = endless(loader)
    optimizer, criterion = torch.optim.Adam(net.parameters(), lr=1e-3), nn.CrossEntropyLoss()

    def step() -> None:
        batch = next(batches)
        optimizer.zero_grad()
        if case.kind == "supervised":
            scores, labels = net(batch[0]), batch[1]
        else:
            support, support_labels, queries, labels, _ = batch
            net.process_support_set(support, support_labels)
            scores = net(queries)
        criterion(scores, labels).backward()
        optimizer.step()

    return step


def endless(loader):  # type: ignore[no-untyped-def]
    while True:
        yield from loader


SIDES = {"plain": plain, "easyfsl": easyfsl}
