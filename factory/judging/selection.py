"""Selection: of each source's kept candidates, the first so many in an order.

An order is what stands after ORDER BY: a file of `sql/select`, or the user's own SQL over signals.
The rank decides where it ties; a NULL comes last, unless the order says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from factory.judgement import OrderBy
from factory.judging.expressions import check_order
from factory.judging.rules import FAMILY_OF, check_measured
from factory.manifest import Manifest
from factory.query.catalog import shipped_sql


@dataclass(frozen=True, slots=True)
class Selection:
    """How targets are taken: SQL after ORDER BY, how many of a source, and the signals read."""

    order: str
    per_source: int
    reads: frozenset[str]

    def told(self) -> list[Any]:
        """As JSON, for keys."""
        return [self.order, self.per_source]

    def verdicts(self, judged: str) -> str:
        """SQL of the verdicts on a relation of signals and `reasons`."""
        return f"""
            SELECT
                sample_id, rank, len(reasons) = 0 AS kept,
                kept AND row_number() OVER (
                    PARTITION BY sample_id ORDER BY len(reasons) > 0,
                    {self.order}
                    , rank
                ) <= {self.per_source} AS selected,
                reasons
            FROM {judged}
            ORDER BY sample_id, rank
        """

    def by_rank_alone(self, judged: str) -> str:
        """SQL that counts the sources of whose kept candidates no signal of the order is known."""
        measured = sorted(self.reads & FAMILY_OF.keys())
        if not measured:
            return "SELECT 0"
        unknown = " AND ".join(f"count({name}) = 0" for name in measured)
        return f"""
            SELECT count(*) FROM (
                SELECT sample_id FROM {judged} WHERE len(reasons) = 0
                GROUP BY sample_id HAVING {unknown}
            )
        """


def selection_of(manifest: Manifest) -> Selection:
    """The selection that a manifest asks for.

    Raises:
        ManifestError: it is no order over signals, or reads one that is not measured.
    """
    chosen, place = manifest.judge.select, "judge.select"
    if isinstance(chosen, OrderBy):
        order, place = chosen.order_by, "judge.select.order_by"
    else:
        order = shipped_sql("select", chosen).strip()
    reads = check_order(order, place)
    check_measured(manifest.judge, reads, place, own=True)
    return Selection(order, manifest.judge.per_source, reads)
