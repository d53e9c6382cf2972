"""Fine-tuning: the network of a supervised classifier is trained on, with a new linear head, on every support.

    theta', W = `steps` of an optimizer on CE(softmax(W f_theta'(x)), y) over the whole support, from the trained theta

Batch norm uses its running statistics meanwhile, where the test does so, and else those of the support.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call
from torch.optim import Optimizer

from metarun.algorithms.base import FewShotLearner, require
from metarun.algorithms.objectives import full, task_losses
from metarun.algorithms.reptile import repeated
from metarun.algorithms.solvers.heads import Kind, first_weights
from metarun.algorithms.supervised import SupervisedLearner
from metarun.algorithms.teacher import Teacher
from metarun.backbones.base import Backbone
from metarun.errors import UserError
from metarun.kinds import TaskSpec
from metarun.nn.batch_norm import normalise_by, query_outputs, scratch_buffers
from metarun.tasks import Episode, Examples, Metrics, Predictor


class FineTune(FewShotLearner):
    """steps: of the optimizer that `inner_optimizer` makes; head_only: the features stay as they are; seed: of the head's first weights.

    The optimizer must treat every number by itself, since it is given the weights of all tasks in one. The other arguments are those
    of `SupervisedLearner`. Raises UserError for what makes no sense.
    """

    supervised_steps: int | None = None

    def __init__(
        self,
        backbone: Backbone,
        spec: TaskSpec,
        inner_optimizer: Callable[..., Optimizer],
        steps: int = 50,
        head_only: bool = False,
        seed: int = 0,
        classifier: Kind = "linear",
        label_smoothing: float = 0.0,
        teacher: Teacher | None = None,
        augment: bool = True,
    ) -> None:
        super().__init__(spec)
        require(steps >= 0, "steps", steps, "0 or more")
        self.trained = SupervisedLearner(backbone, spec, classifier, label_smoothing, teacher, augment)
        self.augment, self.steps, self.head_only, self.seed = augment, steps, head_only, seed
        self.inner_optimizer = inner_optimizer
        try:
            inner_optimizer([torch.zeros(1)])
        except (TypeError, ValueError) as error:
            raise UserError(f"algorithm.inner_optimizer: refuses its values ({error})") from error

    def check_training(self) -> None:
        self.trained.check_training()

    def meta_loss(self, tasks: Examples | Episode) -> tuple[Tensor, Metrics]:
        return self.trained.meta_loss(tasks)

    def adapt(self, support: Examples, statistics: str = "track") -> Predictor:
        network, tasks = self.trained.backbone, len(support)
        weights, head, bias = self._fitted(support, "running" if statistics == "running" else "batch")

        def predict(query: Tensor) -> Tensor:
            features = full(query_outputs(network, weights, support.x, query, statistics, tasks))
            with torch.autocast(query.device.type, enabled=False):
                return torch.baddbmm(bias, features, head.mT)

        return predict

    def _fitted(self, support: Examples, how: Literal["batch", "running"]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The network's parameters (T, *shape) and the head's weights (T, N, D) and biases (T, 1, N), after all steps."""
        network, tasks, x = self.trained.backbone, len(support), full(support.x)
        parameters = dict(network.named_parameters())
        first = first_weights(support.ways, network.out_features, torch.Generator().manual_seed(self.seed))
        head, bias = (value.to(x).repeat(tasks, 1, 1) for value in first)
        learning = [] if self.head_only else [name for name, value in parameters.items() if value.requires_grad]
        weights = {name: value.detach().expand(tasks, *value.shape) for name, value in parameters.items()}
        weights |= {name: repeated(parameters[name].detach(), tasks, like=parameters[name]) for name in learning}
        buffers = scratch_buffers(network, tasks)
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False), normalise_by(network, how):
            leaves = [value.requires_grad_() for value in (*(weights[name] for name in learning), head, bias)]
            optimizer = self.inner_optimizer(leaves)
            features = functional_call(network, weights | buffers, (x,)) if self.head_only else None
            for _ in range(self.steps):
                z = functional_call(network, weights | buffers, (x,)) if features is None else features
                # The sum over tasks, since each task's weights see only its own part of it.
                loss = task_losses(torch.baddbmm(bias, z, head.mT), support.y).sum()
                for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
                    leaf.grad = gradient
                optimizer.step()
        return {name: value.detach() for name, value in weights.items()}, head.detach(), bias.detach()
