"""Which decoding is worth its price? One teacher, the same sentences, every decoding in turn.

Prints, for each: sentences a second, tokens of each source, BLEU of the teacher's own best, BLEU
of the hypothesis most like the reference (chrF; what selection against gold could reach), BLEU of
the one most like the others (chrF; minimum Bayes risk, arXiv 2309.10966), the share of distinct
texts, and how far two hypotheses of a source are apart (100 - chrF, the mean over pairs).

    python benchmarks/decoding.py --model TEACHER --sources en.gz --references fr.gz --rows 500
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import sacrebleu
from sacrebleu.metrics import CHRF

from benchmarks.sentences import LIMIT, parser_of, requests_of, rows_of
from factory.decoding import Generate
from factory.engines import EngineOptions, decode, open_engine
from factory.generation.hypotheses import ranked
from factory.prompting.tokenizing import decode_targets, load_tokenizer

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam 4": {"decoding": "beam", "beam_width": 4, "num_return": 4},
    "beam 8": {"decoding": "beam", "beam_width": 8, "num_return": 8},
    "sample 8": {"decoding": "sample", "num_return": 8},
    "sample 8, top-p 0.9": {"decoding": "sample", "num_return": 8, "top_p": 0.9},
    "sample 8, T 0.7": {"decoding": "sample", "num_return": 8, "temperature": 0.7},
}
CHRF_OF = CHRF()


@dataclass(frozen=True)
class Decoded:
    """What one decoding made: texts of each source by rank, and how long it took."""

    texts: list[list[str]]
    tokens: int
    seconds: float


def main() -> None:
    """Decode with every setting in a process of its own, and print the table."""
    asked = _arguments()
    rows = rows_of(asked)
    references = [row.gold or "" for row in rows]
    bleu = ("BLEU", "BLEU, chrF", "BLEU, MBR")
    head = ("decoding", "sent/s", "tok/source", *bleu, "distinct", "apart")
    print(f"{len(rows)} sources, engine {asked.engine}, {os.cpu_count()} cores\n")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for name in asked.only or SETTINGS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            made = pool.submit(_decode, asked, name).result()
        print("| " + " | ".join((name, *_figures(made, references))) + " |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, "<s>{source}<sep>")
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--only", nargs="*", choices=SETTINGS)
    return parser.parse_args()


def _decode(asked: argparse.Namespace, name: str) -> Decoded:
    """Loading and one warming pass over a tenth are not counted."""
    generate = Generate(max_new_tokens=LIMIT, **SETTINGS[name])
    tokenizer = load_tokenizer(asked.model)
    requests = requests_of(asked, generate, asked.seed)
    options = EngineOptions(asked.model, generate=generate, options=asked.options)
    engine = open_engine(asked.engine, options)
    list(decode(engine, requests[: len(requests) // 10], generate.window))
    began = time.monotonic()
    results = {r.key: r for r in decode(engine, requests, generate.window)}
    seconds = time.monotonic() - began
    engine.close()
    ordered = [results[request.key] for request in requests]
    rows = ranked([r.key for r in ordered], [0] * len(ordered), ordered, generate.exponent)
    ids = [row.hypothesis.token_ids.tolist() for row in rows if row.hypothesis]
    texts: dict[str, list[str]] = {request.key: [] for request in requests}
    for row, text in zip(rows, decode_targets(tokenizer, ids), strict=True):
        texts[row.sample_id].append(text)
    return Decoded(list(texts.values()), sum(map(len, ids)), seconds)


def _figures(made: Decoded, references: Sequence[str]) -> tuple[str, ...]:
    best = [texts[0] for texts in made.texts]
    pairs = zip(made.texts, references, strict=True)
    nearest = [max(texts, key=lambda text: _chrf(text, [gold])) for texts, gold in pairs]
    central = [max(texts, key=lambda text: _chrf(text, texts)) for texts in made.texts]
    distinct = sum(len(set(texts)) / len(texts) for texts in made.texts) / len(made.texts)
    scores = (sacrebleu.corpus_bleu(s, [references]).score for s in (best, nearest, central))
    return (
        f"{len(best) / made.seconds:.1f}",
        f"{made.tokens / len(best):.1f}",
        *(f"{score:.1f}" for score in scores),
        f"{distinct:.0%}",
        f"{_apart(made.texts):.1f}",
    )


def _apart(sources: Sequence[Sequence[str]]) -> float:
    """100 - chrF of two hypotheses of one source; the mean over all pairs, then over sources."""
    pairs = [list(itertools.permutations(texts, 2)) for texts in sources]
    means = [statistics.fmean(100 - _chrf(a, [b]) for a, b in own) for own in pairs if own]
    return statistics.fmean(means) if means else 0.0


def _chrf(text: str, others: Sequence[str]) -> float:
    """Mean chrF of a text against each of the others, itself among them: the same for all."""
    return sum(CHRF_OF.sentence_score(text, [other]).score for other in others) / len(others)


if __name__ == "__main__":
    main()
