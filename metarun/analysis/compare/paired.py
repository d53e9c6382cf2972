"""How far two learners differ on the same tasks: SciPy's statistics of paired values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

SEED = 0
AT_ONCE = 2**20
"""Numbers that are drawn together; without a bound 9999 resamples of 10,000 episodes would take gigabytes."""


@dataclass(frozen=True)
class Paired:
    """The second of two numbers minus the first over `episodes` tasks that both were tested on.

    ci95: of Student's t; bootstrap_ci95: percentiles over resampled episodes. p_permutation: of the mean, over exchanges of the two within
    episodes (exact where there are few enough); p_wilcoxon: of the signed ranks, episodes without a difference left out. episodes_needed:
    to find this difference with 80 % power at a level of 5 %, two-sided; None where there is none to find.
    """

    episodes: int
    difference: float
    ci95: tuple[float, float]
    bootstrap_ci95: tuple[float, float]
    p_permutation: float
    p_wilcoxon: float
    episodes_needed: int | None


def paired(first: np.ndarray, second: np.ndarray, unit: float, resamples: int) -> Paired:
    """Compares values (episodes,) that count in `unit`: right answers, for one. Resampling is seeded: the same for the same input."""
    ahead = (second - first).astype(np.float64)
    mean, sd = float(ahead.mean()), float(ahead.std(ddof=1))
    if sd == 0:  # SciPy warns of it, and has the same interval
        low = high = mean
    else:
        low, high = stats.ttest_rel(second, first).confidence_interval(0.95)
    batch = max(1, AT_ONCE // len(ahead))
    bootstrap = stats.bootstrap((ahead,), np.mean, n_resamples=resamples, batch=batch, method="percentile", rng=np.random.default_rng(SEED))
    return Paired(
        episodes=len(ahead),
        difference=unit * mean,
        ci95=(unit * float(low), unit * float(high)),
        bootstrap_ci95=(unit * float(bootstrap.confidence_interval.low), unit * float(bootstrap.confidence_interval.high)),
        p_permutation=_permutation(ahead[ahead != 0], resamples),
        p_wilcoxon=float(stats.wilcoxon(second, first).pvalue) if ahead.any() else 1.0,
        episodes_needed=_episodes_needed(mean, sd),
    )


def adjusted(p: Sequence[float]) -> list[float]:
    """p-values of several comparisons, raised so that their share of false discoveries is bounded (Benjamini and Hochberg 1995)."""
    return [float(value) for value in stats.false_discovery_control(p)]


def _permutation(ahead: np.ndarray, resamples: int) -> float:
    """The sign of every difference, which is not 0, is as good as drawn if the two are alike; their sum decides."""
    if not len(ahead):
        return 1.0
    drawn = stats.permutation_test(
        (ahead,), np.sum, permutation_type="samples", n_resamples=resamples, batch=max(1, AT_ONCE // len(ahead)),
        rng=np.random.default_rng(SEED),
    )  # fmt: skip
    return float(drawn.pvalue)


def _episodes_needed(mean: float, sd: float) -> int | None:
    """By the normal approximation."""
    if mean == 0:
        return None
    z = stats.norm.ppf(1 - 0.05 / 2) + stats.norm.ppf(0.8)
    return max(2, math.ceil((z * sd / mean) ** 2))
