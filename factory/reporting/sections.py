"""What a report says in which order: sections of figures, each a chart with its numbers.

A figure without rows is left out, and so is a section without figures: a run shows what it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from factory.looking.viewing import Facts
from factory.reporting import charts
from factory.reporting.charts import Spec
from factory.reporting.figures import Tables


@dataclass(frozen=True)
class Figure:
    """Rows, and the chart that draws them (None: a table only)."""

    name: str
    title: str
    caption: str
    rows: Sequence[Facts]
    spec: Spec | None
    query: str = ""
    wide: bool = False

    @cached_property
    def columns(self) -> list[str]:
        """Names of the columns, as the first row has them."""
        return list(self.rows[0])

    @cached_property
    def numeric(self) -> set[str]:
        """The columns that hold numbers."""
        return {
            name
            for name in self.columns
            if any(isinstance(row[name], int | float) for row in self.rows)
            and not any(isinstance(row[name], bool) for row in self.rows)
        }


@dataclass(frozen=True)
class Section:
    """Figures under one question; `lead` says how to read them."""

    name: str
    title: str
    lead: str
    figures: Sequence[Figure]


# Section, measure: title, how to read it.
HISTOGRAMS = {
    ("lengths", "length_ratio"): (
        "Target words over source words",
        "Far from the rest: a cut, a repetition, another task.",
    ),
    ("lengths", "char_ratio"): ("Target characters over source characters", ""),
    ("lengths", "n_words_source"): ("Words in a source", ""),
    ("lengths", "n_words_target"): ("Words in a target", ""),
    ("lengths", "n_tokens"): ("Tokens in a target", "What training pays for."),
    ("confidence", "mean_logprob"): (
        "Mean log-probability of a target's tokens",
        "Natural logarithms; 0 is certain, -0.7 a coin's toss a token.",
    ),
    ("confidence", "min_logprob"): (
        "Log-probability of a target's least likely token",
        "One bad place that a mean hides.",
    ),
    ("confidence", "entropy"): (
        "Mean entropy of what is stored, in nats",
        "How many answers the teacher saw at each token.",
    ),
    ("confidence", "reverse_logprob"): (
        "Log-probability of the source, given the target",
        "By the reverse model, for each token: low where something was left out or added.",
    ),
    ("texts", "repetition"): (
        "Repetition over its published limits",
        "Above 1, some n-gram or line repeats more than the table allows.",
    ),
    ("texts", "copy_overlap"): ("Share of a target's words copied from its source", ""),
    ("texts", "language_confidence"): ("Confidence of the target's identified language", ""),
    ("gold", "chrf_gold"): ("chrF against gold", "100 is gold itself; of sources with gold only."),
    ("gold", "bleu_gold"): ("BLEU against gold", "Of one sentence, with effective order."),
    ("diversity", "agreement"): (
        "Agreement of a candidate with the others of its source",
        "Mean chrF; 100 where all say the same.",
    ),
}
NAMES = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "ter": "TER (lower is better)",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "exact_match": "Exact match, %",
}


def sections(tables: Tables) -> list[Section]:
    """All sections that have something to show."""
    every = (
        Section("funnel", "From sources to pseudolabels", FUNNEL, _funnel(tables)),
        Section("scores", "Scores", SCORES, _scores(tables)),
        Section("comparison", "Beside other runs", COMPARISON, _comparison(tables)),
        Section("training", "Training", TRAINING, _training(tables)),
        Section("lengths", "Lengths", BINS, _histograms("lengths", tables)),
        Section("confidence", "Confidence", BINS, _confidence(tables)),
        Section("texts", "Texts", BINS, _texts(tables)),
        Section("gold", "Similarity to gold", GOLD, _gold(tables)),
        Section("diversity", "Candidate diversity", DIVERSITY, _diversity(tables)),
        Section("cache", "What is stored", CACHE, _cache(tables)),
        Section("measures", "All measures", MEASURES, _measures(tables)),
    )
    return [section for section in every if section.figures]


FUNNEL = "Nothing is deleted: what a rule rejects stays, with every reason."
BINS = (
    "Candidates by verdict, in bins; the outermost bins hold what lies beyond the half per cent at "
    "either end."
)
TRAINING = "One point is one optimiser step, or the mean of several in a long stage."
SCORES = (
    "A dot is the score of the whole split, the bar its 95 % interval by bootstrap, a small tick "
    "the score of a fold."
)
COMPARISON = (
    "Scores with their 95 % intervals; the numbers have each difference from this run and its "
    "p-value by paired resampling."
)
GOLD = (
    "How near the teacher comes to targets written by people, and what choosing among its "
    "candidates could give."
)
DIVERSITY = "Whether several candidates of a source are worth more than one."
CACHE = "Bytes on disk, and the probability that the stored distributions leave out."
MEASURES = "Quantiles are approximate, to about a hundredth of the candidates."


def _funnel(tables: Tables) -> list[Figure]:
    if not tables["candidates"][0]["candidates"]:
        return []
    refused = sum(row["rows"] for row in tables["refused"])
    caption = f"Input rows that could not be used: {refused:,}." if refused else ""
    failing = [row for row in tables["reasons"] if row["candidates"]]
    silent = [row["rule"] for row in tables["reasons"] if not row["candidates"]]
    told = f"Rejected nothing: {', '.join(silent)}." if silent else ""
    steps = tables["funnel"]
    figures = [
        Figure(
            "steps", "Sources left at each step", caption, steps,
            charts.bars("step", "sources", steps, "sources"), "sql/report/funnel.sql",
        )
    ]  # fmt: skip
    if tables["reasons"]:
        kinds = ("alone", "with_others")
        spec = charts.stacked("rule", kinds, failing, "candidates") if failing else None
        title = "Candidates that each rule rejects"
        rows = tables["reasons"]
        figures.append(Figure("reasons", title, told, rows, spec, "sql/report/reasons.sql"))
    return figures


def _histograms(section: str, tables: Tables) -> list[Figure]:
    found = {
        measure: [{k: v for k, v in row.items() if k != "measure"} for row in rows]
        for measure, rows in groupby(tables["histograms"], lambda row: row["measure"])
    }
    return [
        Figure(
            measure, title, caption, found[measure],
            charts.histogram(found[measure]),
            "sql/report/histograms.sql",
        )
        for (place, measure), (title, caption) in HISTOGRAMS.items()
        if place == section and measure in found
    ]  # fmt: skip


def _confidence(tables: Tables) -> list[Figure]:
    figures = _histograms("confidence", tables)
    rows = _columns(tables["positions"], "mean_logprob", "p5_logprob")
    if rows:
        spec = charts.along("position", ["mean_logprob", "p5_logprob"], rows, "log-probability")
        title = "Log-probability of the chosen token, along a target"
        told = "Mean, and the least certain twentieth; where one target in a hundred still goes on."
        figures.append(
            Figure("logprob_by_position", title, told, rows, spec, "sql/report/positions.sql")
        )
    return figures


def _texts(tables: Tables) -> list[Figure]:
    """Measures that say nothing (all of one value) are left to the table of all measures."""
    spread = {row["measure"] for row in tables["measures"] if row["least"] < row["most"]}
    figures = [figure for figure in _histograms("texts", tables) if figure.name in spread]
    rows = tables["languages"]
    if rows:
        parts = [part for part in charts.VERDICTS if any(row[part] for row in rows)]
        colours = [charts.VERDICTS[part] for part in parts]
        spec = charts.stacked("language", parts, rows, "candidates", colours)
        title = "Identified language of the target"
        figures.append(Figure("languages", title, "", rows, spec, "sql/report/languages.sql"))
    return figures


def _gold(tables: Tables) -> list[Figure]:
    figures = _histograms("gold", tables)
    rows = tables["ranks"]
    if len(rows) > 1:
        title = "chrF against gold, by rank"
        told = (
            "Line: 5 to 95 %; box: the middle half; tick: median. "
            "Orange: what choosing the best of the ranks so far would give, on average."
        )
        spec = charts.spread_by_rank(rows, "chrF")
        figures.append(Figure("chrf_by_rank", title, told, rows, spec, "sql/report/ranks.sql"))
    return figures


def _diversity(tables: Tables) -> list[Figure]:
    rows = tables["diversity"]
    if not rows:
        return []
    different = sum(row["different"] * row["sources"] for row in rows)
    told = f"{different / sum(row['sources'] for row in rows):.2f} on average."
    shown = [row | {"different": str(row["different"])} for row in rows]
    spec = charts.bars("different", "sources", shown, "sources")
    title = "Different texts among a source's candidates"
    figure = Figure("different", title, told, rows, spec, "sql/report/diversity.sql")
    return [figure, *_histograms("diversity", tables)]


def _cache(tables: Tables) -> list[Figure]:
    if not (tables["caches"] or tables["candidates"][0]["candidates"]):
        return []
    rows = _weighed(tables)
    figures = [
        Figure(
            "bytes", "Bytes by what they hold", "", rows,
            charts.bars("stored", "bytes", rows, "bytes"),
        )
    ]  # fmt: skip
    if tables["caches"]:
        title = "Distributions by origin"
        caption = "An entry is a token with its log-probability; tail is what they leave out."
        query = "sql/report/caches.sql"
        figures.append(Figure("caches", title, caption, tables["caches"], None, query))
    names = ("median_tail", "mean_tail", "p95_tail")
    if tails := _columns(tables["positions"], *names):
        spec = charts.along("position", names, tails, "probability", log=True)
        title = "Probability outside what is stored, along a target"
        query = "sql/report/positions.sql"
        figures.append(Figure("tail_by_position", title, "", tails, spec, query))
    return figures


def _weighed(tables: Tables) -> list[Facts]:
    """Bytes of each table; of candidates and distributions also for each of their tokens."""
    tokens = {
        "candidates": tables["candidates"][0]["tokens"],
        "distributions": sum(row["tokens"] for row in tables["caches"]),
    }
    return [
        row | {"bytes_per_token": row["bytes"] / n if (n := tokens.get(row["stored"])) else None}
        for row in tables["bytes"]
    ]


def _training(tables: Tables) -> list[Figure]:
    figures: list[Figure] = []
    for stage, group in groupby(tables["terms"], lambda row: row["stage"]):
        rows = list(group)
        spec = charts.curves("stage_step", "value", "term", rows, "nats a token")
        title = f"Loss and its terms: {stage}"
        figures.append(
            Figure(f"loss_{len(figures)}", title, "", rows, spec, "sql/report/terms.sql")
        )
    scored = tables["validation"]
    if scored:
        metric = NAMES.get(scored[0]["metric"], "score")
        spec = charts.curves("epoch", "score", "stage", scored, metric, marks=True)
        title = f"Validation {metric} by epoch"
        figures.append(Figure("validation", title, "The best model is kept.", scored, spec))
    rows = tables["training"]
    for column, title in (("lr", "Learning rate"), ("tokens_per_second", "Target tokens a second")):
        if any(row[column] is not None for row in rows):
            spec = charts.curves("step", column, "stage", rows, title.lower())
            figures.append(Figure(column, title, "", rows, spec, "sql/report/training.sql"))
    return figures


def _scores(tables: Tables) -> list[Figure]:
    figures: list[Figure] = []
    for (split, metric), group in groupby(
        tables["scores"], lambda row: (row["split"], row["metric"])
    ):
        rows = [_labelled(row, tables["folds"]) for row in group]
        named = NAMES.get(metric, metric)
        title = f"{named} on {split}"
        spec = charts.scores(rows, named)
        name = f"score_{len(figures)}"
        figures.append(Figure(name, title, "", rows, spec, "sql/inspect/scores.sql"))
    return figures


def _labelled(row: Facts, folds: Sequence[Facts]) -> Facts:
    same = ("system", "stage", "split", "metric")
    mine = [fold["score"] for fold in folds if all(fold[key] == row[key] for key in same)]
    numbers = {key: row[key] for key in ("score", "ci_low", "ci_high", "fold_mean", "fold_sd")}
    return {"label": _system(row)} | numbers | {"folds": mine, "signature": row["signature"]}


def _system(row: Facts) -> str:
    return f"{row['system']} · {row['stage']}" if row["stage"] else str(row["system"])


def _comparison(tables: Tables) -> list[Figure]:
    """A chart for each split and metric, and a table of what the runs are and took."""
    figures: list[Figure] = []
    scored = sorted(tables["compared"], key=lambda row: (row["split"], row["metric"]))
    for (split, metric), group in groupby(scored, lambda row: (row["split"], row["metric"])):
        rows = [_beside(row) for row in group]
        named = NAMES.get(metric, metric)
        title, name = f"{named} on {split}", f"compared_{len(figures)}"
        figures.append(Figure(name, title, "", rows, charts.scores(rows, named)))
    if tables["compared_runs"]:
        notes = " ".join(f"{row['note']}." for row in tables["compared_notes"])
        rows = tables["compared_runs"]
        figures.append(Figure("compared_runs", "The runs", notes, rows, None, wide=True))
    return figures


def _beside(row: Facts) -> Facts:
    numbers = ("score", "ci_low", "ci_high", "difference", "p_value")
    told = {key: row[key] for key in numbers} | {"compared_with": row["reference"]}
    return {"label": f"{row['run']} · {_system(row)}"} | told


def _measures(tables: Tables) -> list[Figure]:
    rows = tables["measures"]
    if not rows:
        return []
    return [Figure("measures", "Quantiles", "", rows, None, "sql/report/measures.sql", wide=True)]


def _columns(rows: Sequence[Facts], *names: str) -> list[Facts]:
    """Rows with an origin and a position, cut to some columns, where any of them has a value."""
    return [
        {key: row[key] for key in ("origin", "position", "targets", *names)}
        for row in rows
        if any(row[name] is not None for name in names)
    ]
