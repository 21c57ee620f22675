"""Quantile rules: of all candidates, the share that is worst by a signal is dropped.

For signals that no published limit fits, such as a model's own log-probabilities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pyarrow as pa

from factory.errors import ManifestError, nearest
from factory.query.catalog import Connection
from factory.schemas import MEASURED

NUMBERS = {
    name
    for family in MEASURED.values()
    for name, kind in family
    if pa.types.is_integer(kind) or pa.types.is_floating(kind)
}
# Which end of a signal is the worse one; of lengths, ratios and ids neither is by itself.
LOW = {
    *("mean_logprob", "min_logprob", "reverse_logprob", "language_confidence", "agreement"),
    *("chrf_gold", "bleu_gold", "number_match", "letter_share", "letter_word_share"),
}
HIGH = {
    *("entropy", "control_tokens", "copy_overlap", "numbers_missing", "numbers_added"),
    *("urls_missing", "urls_added", "placeholders_missing", "glossary_missing"),
    *(name for name, _ in MEASURED["repetition"]),
}
KEYS = ("drop_worst", "signal", "worst")


@dataclass(frozen=True, slots=True)
class Quantile:
    """Which share of the candidates is dropped, from which end of a signal."""

    signal: str
    share: float
    worst: str

    def told(self) -> tuple[str, float, str]:
        """What it says, as JSON."""
        return self.signal, self.share, self.worst

    def condition(self, threshold: float | None) -> str:
        """The condition to keep a candidate: what ties with the threshold stays."""
        limit = "NULL" if threshold is None else f"'{threshold!r}'"
        return f"{self.signal} {'>=' if self.worst == 'low' else '<='} CAST({limit} AS DOUBLE)"

    def threshold(self, connection: Connection, relation: str) -> float | None:
        """The value that stays, and all worse ones go; None where there is no value.

        Of n candidates that have no error and whose signal is not NULL, ordered from the worst,
        this is the value at place ⌊share · n⌋, from 0: so at most that share goes. The sort spills,
        as no quantile function does.
        """
        values = f"FROM {relation} WHERE error IS NOT TRUE AND {self.signal} IS NOT NULL"
        [(count,)] = connection.execute(f"SELECT count(*) {values}").fetchall()
        found = connection.execute(
            f"SELECT {self.signal}::DOUBLE {values}"
            f" ORDER BY {self.signal} {'ASC' if self.worst == 'low' else 'DESC'}"
            f" LIMIT 1 OFFSET {math.floor(Fraction(str(self.share)) * count)}"
        ).fetchall()
        return float(found[0][0]) if found else None


def quantile(name: str, parameters: dict[str, Any], place: str) -> Quantile:
    """A quantile rule as the manifest gives it; its name is its signal, unless that is given.

    Raises:
        ManifestError: a parameter is unknown, or out of range; or the signal is no number, or
            neither of its ends is the worse one by itself.
    """
    for key, value in parameters.items():
        if key not in KEYS:
            raise ManifestError(f"{place}.{key}", value, f"is no parameter: {nearest(key, KEYS)}")
    signal, share = parameters.get("signal", name), parameters["drop_worst"]
    if signal not in NUMBERS:
        remedy = f"is no signal that is a number: {nearest(str(signal), NUMBERS)}"
        raise ManifestError(place, signal, remedy)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise ManifestError(f"{place}.drop_worst", share, "must be a share from 0 to below 1")
    return Quantile(signal, float(share), _worst(signal, parameters.get("worst"), place))


def _worst(signal: str, given: Any, place: str) -> str:
    known = "low" if signal in LOW else "high" if signal in HIGH else None
    if given is None and known is None:
        remedy = f"neither end of {signal} is the worse one by itself: set it to low or high"
        raise ManifestError(f"{place}.worst", None, remedy)
    if given not in (None, "low", "high"):
        raise ManifestError(f"{place}.worst", given, "must be low or high")
    return str(given or known)
