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

from factory.decoding import Generate, draw_seed, token_limit
from factory.engines import EngineOptions, Request, decode, open_engine
from factory.hypotheses import ranked
from factory.manifest import Prompt, Split
from factory.prompts import Prompter
from factory.sources import Row, read_split
from factory.tokenizing import decode_targets, load_tokenizer

LIMIT: dict[str, Any] = {"max_new_tokens": {"ratio": 2.0, "plus": 10, "cap": 256}}
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
    rows = _rows(asked)
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--sources", required=True)
    parser.add_argument("--references", required=True)
    parser.add_argument("--template", default="<s>{source}<sep>")
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--only", nargs="*", choices=SETTINGS)
    return parser.parse_args()


def _rows(asked: argparse.Namespace) -> list[Row]:
    split = Split(source=asked.sources, target=asked.references)
    rows = (row for row in read_split(split) if isinstance(row, Row))
    return [row for row, _ in zip(rows, range(asked.rows), strict=False)]


def _decode(asked: argparse.Namespace, name: str) -> Decoded:
    """Loading and one warming pass over a tenth are not counted."""
    generate = Generate(**LIMIT, **SETTINGS[name])
    tokenizer = load_tokenizer(asked.model)
    requests = _requests(asked, generate)
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


def _requests(asked: argparse.Namespace, generate: Generate) -> list[Request]:
    prompter = Prompter(load_tokenizer(asked.model), Prompt(template=asked.template))
    _, encoded = prompter.encode([{"source": row.source} for row in _rows(asked)])
    draws = range(generate.num_return if generate.decoding == "sample" else 0)
    return [
        Request(
            key=str(number),
            prompt_ids=ids,
            max_new_tokens=token_limit(generate.max_new_tokens, len(ids)),
            seeds=tuple(draw_seed(asked.seed, str(number), ordinal) for ordinal in draws),
        )
        for number, ids in enumerate(encoded)
    ]


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
