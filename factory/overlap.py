"""Means over sentences: ROUGE and exact match, as metrics that sacreBLEU resamples like its own."""

from __future__ import annotations

import re
import unicodedata
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sacrebleu.metrics.base import Metric, Score, Signature

WORD = re.compile(r"[^\W_]+")


class Settings(Signature):
    """A signature that says what a metric's `settings` say."""

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__(args)
        for key, value in args["settings"].items():
            self.update(key, value)


class SentenceMean(Metric):
    """100 times the mean, over sentences, of a figure from 0 to 1.

    The statistics of a sentence are that figure and 1, so that sums of them give the mean of any
    resample.
    """

    _SIGNATURE_TYPE = Settings

    def __init__(self, name: str, **settings: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # sacreBLEU's
        self.name, self.settings = name, settings

    @abstractmethod
    def sentence(self, hypothesis: str, reference: str) -> float:
        """The figure of one sentence, from 0 to 1."""

    def _preprocess_segment(self, sent: str) -> str:
        return unicodedata.normalize("NFC", sent)

    def _extract_reference_info(self, refs: Sequence[str]) -> dict[str, Any]:
        [reference] = refs
        return {"reference": reference}

    def _compute_segment_statistics(
        self, hypothesis: str, ref_kwargs: dict[str, Any]
    ) -> list[float]:
        return [self.sentence(hypothesis, ref_kwargs["reference"]), 1.0]

    def _aggregate_and_compute(self, stats: list[list[float]]) -> Score:
        return self._compute_score_from_stats([sum(column) for column in zip(*stats, strict=True)])

    def _compute_score_from_stats(self, stats: Sequence[float]) -> Score:
        return Score(self.name, 100.0 * float(stats[0]) / float(stats[1]))


class Rouge(SentenceMean):
    """ROUGE-1, ROUGE-2 or ROUGE-L (Lin 2004, W04-1013): F1, without stemming.

    With m the n-grams in common (counted as often as both hold them) or the length of the longest
    common subsequence of words, F1 = 2m / (those of the hypothesis + those of the reference), and
    0 where neither has any. Words are runs of letters and digits, lowercased: of ASCII text those
    of the package `rouge-score`, which drops every other letter. ROUGE-L takes a text as one
    sequence, line breaks or not.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(f"rouge{kind}", case="lc", tok="alnum", stem="no", mean="f1")
        self.kind = kind

    def sentence(self, hypothesis: str, reference: str) -> float:
        """F1 of one sentence."""
        ours, theirs = words(hypothesis), words(reference)
        n = 1 if self.kind == "L" else int(self.kind)
        held = max(0, len(ours) - n + 1) + max(0, len(theirs) - n + 1)
        common = longest_common(ours, theirs) if self.kind == "L" else _shared(ours, theirs, n)
        return 2 * common / held if held else 0.0


class ExactMatch(SentenceMean):
    """The share of texts that equal their reference: case and punctuation count, blanks do not.

    Both are brought to Unicode's NFC, runs of blanks to one, and ends are stripped.
    """

    def __init__(self) -> None:
        super().__init__("exact_match", case="mixed", norm="nfc+blanks")

    def sentence(self, hypothesis: str, reference: str) -> float:
        """1 where they are equal, else 0."""
        return float(hypothesis.split() == reference.split())


def words(text: str) -> list[str]:
    """Runs of letters and digits, lowercased."""
    return WORD.findall(text.lower())


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence: a column of the table is the bits of one integer.

    Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    every = left = (1 << len(first)) - 1
    for word in second:
        met = left & places.get(word, 0)
        left = ((left + met) | (left - met)) & every
    return len(first) - left.bit_count()


def _shared(first: Sequence[str], second: Sequence[str], n: int) -> int:
    """How many n-grams both hold."""
    return (_ngrams(first, n) & _ngrams(second, n)).total()


def _ngrams(text: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(text[i:] for i in range(n)), strict=False))
