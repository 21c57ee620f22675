"""Metrics of texts: the interval of a score, and whether two systems differ by chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import numpy as np
from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest, Result, estimate_ci

from factory.overlap import ExactMatch, Rouge

METRICS: dict[str, Callable[[], Metric]] = {
    "bleu": BLEU,
    "chrf": CHRF,
    "ter": TER,
    "rouge1": partial(Rouge, "1"),
    "rouge2": partial(Rouge, "2"),
    "rougeL": partial(Rouge, "L"),
    "exact_match": ExactMatch,
}
LOWER_IS_BETTER = frozenset({"ter"})
RESAMPLES = 1000
SEED = 12345  # sacreBLEU's own


def interval(
    metric: Metric, hypotheses: Sequence[str], references: Sequence[str]
) -> tuple[float, float]:
    """What `corpus_score(…, n_bootstrap=1000)` finds, draws included, row by row.

    The central 95 % of bootstrap resamples (Koehn 2004), around their mean. SacreBLEU's own
    copies every resample's statistics at once, and fails where some of the resamples score 0.
    """
    statistics = metric._extract_corpus_statistics(list(hypotheses), [list(references)])
    stacked = np.asarray(statistics, dtype=np.float32)
    random = np.random.default_rng(SEED)
    draws = random.choice(len(stacked), size=(RESAMPLES, len(stacked)), replace=True)
    found = [metric._compute_score_from_stats(stacked[draw].sum(0)).score for draw in draws]
    middle, half = estimate_ci(np.asarray(found, dtype=np.float64))
    vars(metric).update(n_bootstrap=RESAMPLES, seed=str(SEED))  # for the signature
    return float(middle - half), float(middle + half)


def paired(
    name: str, first: Sequence[str], second: Sequence[str], references: Sequence[str]
) -> tuple[float, str]:
    """The p-value of two systems' difference by paired bootstrap resampling, and its signature.

    The test is sacreBLEU's (Koehn 2004, two-sided): the share of 1,000 resamples in which the
    difference strays from its mean by more than the difference itself. Where the scores are the
    same it is 1: sacreBLEU counts strictly larger strays only, and says 0.001 of equal texts.

    `name` is of `METRICS`; both systems' texts and the references are of the same sources, in the
    same order.
    """
    both: list[tuple[str, Sequence[str]]] = [("first", list(first)), ("second", list(second))]
    test = PairedTest(both, {name: METRICS[name]()}, [list(references)], "bs", RESAMPLES)
    signatures, results = test()
    [(metric, signature)] = signatures.items()
    one, other = cast("list[Result]", results[metric])
    chance = 1.0 if one.score == other.score else cast("float", other.p_value)
    return chance, str(signature)
