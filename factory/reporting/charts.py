"""Charts of a report: rows to Vega-Lite, by Altair. A chart reads its rows by the name `rows`.

Colours are told apart by people who see no red or no green, and stand on white and on black; the
page adds what hangs on light and dark.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import altair as alt

from factory.looking.viewing import Facts

Spec = dict[str, Any]
Drawing: TypeAlias = alt.Chart | alt.LayerChart | alt.FacetChart

BLUE, ORANGE, GREEN, PINK, GREY = "#3a87c8", "#dd7a0e", "#1b9e77", "#b9579f", "#8a939c"
PALETTE = [BLUE, ORANGE, GREEN, PINK, "#9a8c1f", "#7b6fc4", GREY, "#c0504d"]
VERDICTS = {"selected": BLUE, "kept": GREY, "rejected": ORANGE}
ROWS = alt.NamedData("rows")
HEIGHT = 220
BAR = 28  # pixels a category
# Ticks: counts in full up to ten thousand, other numbers with the digits that count.
COUNTS = "abs(datum.value) < 1e4 ? format(datum.value, ',') : format(datum.value, '.3~s')"
NUMBERS = "format(datum.value, ',.4~g')"
TENS = 10.0  # a metric of smaller scores is told to three digits that count
POWERS = [10.0**power for power in range(-9, 1)]


def bars(label: str, value: str, rows: Sequence[Facts], title: str) -> Spec:
    """One horizontal bar a row, its value at the end."""
    room = alt.Scale(domainMin=0, domainMax=1.3 * max(row[value] for row in rows) or 1)
    base = alt.Chart(ROWS).encode(
        x=alt.X(f"{value}:Q", title=title, scale=room, axis=_axis(COUNTS)),
        y=_categories(label),
        tooltip=_tips(rows),
    )
    shown = base.mark_text(align="left", dx=5).encode(text=alt.Text(f"{value}:Q", format=","))
    return _spec(base.mark_bar(color=BLUE) + shown, BAR * len(rows))


def stacked(
    label: str,
    parts: Sequence[str],
    rows: Sequence[Facts],
    title: str,
    colours: Sequence[str] = PALETTE,
) -> Spec:
    """Horizontal bars, each of several parts: columns that hold counts."""
    chart = (
        _folded(parts, "part", "amount")
        .transform_filter("datum.amount > 0")
        .transform_calculate(named="replace(datum.part, '_', ' ')", place=_place("part", parts))
        .mark_bar()
        .encode(
            x=alt.X("sum(amount):Q", title=title, axis=_axis(COUNTS)),
            y=_categories(label),
            color=_colour("named", [part.replace("_", " ") for part in parts], colours),
            order=alt.Order("place:Q"),
            tooltip=_tips(rows),
        )
    )
    return _spec(chart, BAR * len(rows))


def histogram(rows: Sequence[Facts]) -> Spec:
    """Counts by bin (from, to), stacked by verdict: selected, kept, rejected."""
    parts = [part for part in VERDICTS if any(row[part] for row in rows)]
    chart = (
        _folded(parts, "verdict", "candidates")
        .transform_filter("datum.candidates > 0")
        .transform_calculate(place=_place("verdict", parts))
        .mark_bar()
        .encode(
            x=alt.X("from:Q", bin="binned", title=None, axis=alt.Axis(labelExpr=NUMBERS)),
            x2="to:Q",
            y=alt.Y("candidates:Q", title="candidates", axis=_axis(COUNTS)),
            color=_colour("verdict", parts, [VERDICTS[part] for part in parts]),
            order=alt.Order("place:Q"),
            tooltip=_tips(rows),
        )
    )
    return _spec(chart)


def spread_by_rank(rows: Sequence[Facts], title: str) -> Spec:
    """Where 5, 25, 50, 75 and 95 % of each rank lie, and the best of the ranks so far."""

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=False), axis=_axis(NUMBERS))

    rank = alt.X("rank:O", axis=alt.Axis(labelAngle=0))
    base = alt.Chart(ROWS).encode(x=rank, tooltip=_tips(rows))
    dots = alt.OverlayMarkDef(color=ORANGE, size=50, filled=True)
    chart = (
        base.mark_rule(color=BLUE).encode(y=y("p5"), y2="p95:Q")
        + base.mark_bar(size=16, opacity=0.55, color=BLUE).encode(y=y("p25"), y2="p75:Q")
        + base.mark_tick(size=16, thickness=2, color=BLUE).encode(y=y("median"))
        + base.mark_line(color=ORANGE, point=dots).encode(y=y("best_so_far"))
    )
    return _spec(chart)


def along(
    x: str, columns: Sequence[str], rows: Sequence[Facts], title: str, log: bool = False
) -> Spec:
    """Lines of some columns along a number; of several origins, dashed apart."""
    scale = alt.Scale(type="log") if log else alt.Scale(zero=False)
    axis = alt.Axis(values=POWERS, labelExpr=NUMBERS) if log else _axis(NUMBERS)
    chart = (
        _folded(columns, "line", "amount")
        .transform_filter("isValid(datum.amount)" + (" && datum.amount > 0" if log else ""))
        .transform_calculate(named="replace(datum.line, '_', ' ')")
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X(f"{x}:Q", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("amount:Q", title=title, scale=scale, axis=axis),
            color=_colour("named", [name.replace("_", " ") for name in columns]),
            tooltip=_tips(rows),
        )
    )
    if len({row["origin"] for row in rows}) > 1:
        chart = chart.encode(strokeDash=alt.StrokeDash("origin:N", legend=_legend()))
    return _spec(chart)


def curves(
    x: str, y: str, colour: str, rows: Sequence[Facts], title: str, *, marks: bool = False
) -> Spec:
    """A line for each value of `colour`; `marks` shows its points too, for few of them."""
    names = list(dict.fromkeys(row[colour] for row in rows))
    chart = (
        alt.Chart(ROWS)
        .mark_line(strokeWidth=2, point=marks)
        .encode(
            x=alt.X(
                f"{x}:Q", title=x.replace("_", " "), axis=alt.Axis(labelExpr=COUNTS, tickMinStep=1)
            ),
            y=alt.Y(f"{y}:Q", title=title, scale=alt.Scale(zero=False), axis=_axis(NUMBERS)),
            color=_colour(colour, names),
            tooltip=_tips(rows),
        )
    )
    return _spec(chart)


def scores(rows: Sequence[Facts], title: str) -> Spec:
    """Scores of several systems, or of several runs', with their confidence intervals.

    Args:
        rows: `label` (unique), `score`, and where known `ci_low`, `ci_high`, and `folds`, a list of
            the scores of parts, drawn as small ticks.
        title: what was measured.
    """
    digits = ".1f" if max(abs(row["score"]) for row in rows) >= TENS else ".3~g"

    def x(field: str) -> alt.X:
        room = alt.Scale(zero=False, padding=14)
        return alt.X(f"{field}:Q", title=title, scale=room, axis=_axis(NUMBERS))

    base = alt.Chart(ROWS).encode(y=_categories("label"))
    coloured = base.encode(color=_colour("label", [row["label"] for row in rows], legend=False))
    layers: list[alt.Chart] = []
    if any(row.get("ci_low") is not None for row in rows):
        interval = coloured.mark_rule(strokeWidth=3, opacity=0.8)
        layers.append(interval.encode(x=x("ci_low"), x2="ci_high:Q"))
    if any(row.get("folds") for row in rows):
        folds = coloured.transform_flatten(["folds"]).mark_tick(size=12, opacity=0.6)
        layers.append(folds.encode(x=x("folds")))
    dot = coloured.mark_point(filled=True, size=110, opacity=1)
    layers.append(dot.encode(x=x("score"), tooltip=_tips(rows)))
    number = base.mark_text(dy=-13, fontWeight=600)
    layers.append(number.encode(x=x("score"), text=alt.Text("score:Q", format=digits)))
    return _spec(alt.layer(*layers), 44 * len(rows))


def _spec(chart: Drawing, height: int = HEIGHT) -> Spec:
    """The chart as JSON, as wide as its place; sizes and colours of text are the page's."""
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    sized = chart.properties(width="container", height=height, autosize=fit)
    spec: Spec = sized.to_dict()
    del spec["config"]
    return spec


def _folded(columns: Sequence[str], key: str, value: str) -> alt.Chart:
    return alt.Chart(ROWS).transform_fold(list(columns), as_=[key, value])


def _place(field: str, parts: Sequence[str]) -> str:
    """The parts of a bar in their order, the first one at its foot."""
    return f"indexof({json.dumps(list(parts))}, datum.{field})"


def _axis(labels: str) -> alt.Axis:
    step = 1 if labels == COUNTS else alt.Undefined
    return alt.Axis(labelExpr=labels, tickCount=5, tickMinStep=step)


def _categories(field: str) -> alt.Y:
    """Categories from top to bottom in the order of the rows."""
    axis = alt.Axis(labelLimit=170, labelOverlap=False, ticks=False)
    return alt.Y(f"{field}:N", title=None, sort=None, axis=axis)


def _colour(
    field: str, names: Sequence[str], colours: Sequence[str] = PALETTE, *, legend: bool = True
) -> alt.Color:
    cycle = [colours[place % len(colours)] for place in range(len(names))]
    scale = alt.Scale(domain=list(names), range=cycle)
    return alt.Color(f"{field}:N", scale=scale, legend=_legend() if legend else None)


def _legend() -> alt.Legend:
    return alt.Legend(orient="top", title=None, labelLimit=200)


def _tips(rows: Sequence[Facts]) -> list[alt.Tooltip]:
    """Every number of the row, as it stands in the table below."""
    first: Facts = rows[0] if rows else {}
    return [_tip(name, value) for name, value in first.items() if not isinstance(value, list)]


def _tip(name: str, value: Any) -> alt.Tooltip:
    title = name.replace("_", " ")
    if isinstance(value, float):
        return alt.Tooltip(field=name, type="quantitative", title=title, format=",.4~g")
    kind: Literal["quantitative", "nominal"] = (
        "quantitative" if isinstance(value, int) else "nominal"
    )
    return alt.Tooltip(field=name, type=kind, title=title)
