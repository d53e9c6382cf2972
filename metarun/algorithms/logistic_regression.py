"""Logistic regression on frozen features. Tian, Wang, Krishnan, Tenenbaum, Isola, 2020 (RFS). arXiv:2003.11539

    W, b = argmin  sum_i CE(softmax(W g_i + b), y_i) + penalty/2 |W|^2   over the support,   g = f/|f|

With a teacher it is RFS-distill; a further generation has the last one's run as its teacher.

Differs from the paper's code: the problem is solved by Newton's method and not by scikit-learn (multinomial with two classes too, where
scikit-learn has one vector); no copies of the support are made by augmentation.
"""

from torch.nn import functional as F

from metarun.algorithms.base import require
from metarun.algorithms.solvers.heads import Kind
from metarun.algorithms.solvers.newton import logistic_regression
from metarun.algorithms.supervised import SupervisedLearner
from metarun.algorithms.teacher import Teacher
from metarun.backbones.base import Backbone
from metarun.kinds import TaskSpec
from metarun.tasks import Examples, Predictor


class LogisticRegression(SupervisedLearner):
    """penalty: on squared weights, 1/C in scikit-learn; normalise: features to length 1. The rest is as in `SupervisedLearner`."""

    def __init__(
        self,
        backbone: Backbone,
        spec: TaskSpec,
        penalty: float = 1.0,
        normalise: bool = True,
        classifier: Kind = "linear",
        label_smoothing: float = 0.0,
        teacher: Teacher | None = None,
        augment: bool = True,
    ) -> None:
        super().__init__(backbone, spec, classifier, label_smoothing, teacher, augment)
        require(penalty > 0, "penalty", penalty, "a number above 0")
        self.penalty, self.normalise = penalty, normalise

    def classify(self, support: Examples) -> Predictor:
        x = F.normalize(support.x, dim=-1) if self.normalise else support.x
        weight, bias = logistic_regression(x, support.y, support.ways, self.penalty)
        return lambda z: (F.normalize(z, dim=-1) if self.normalise else z) @ weight + bias
