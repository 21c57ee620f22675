"""Engine ctranslate2 beside engine transformers: one encoder–decoder, the same sentences, in turn.

Prints, for greedy and beam 4: sentences a second (the median of the repeats; systems take turns,
each in a process of its own; loading and a warming pass over a tenth are not counted), times
transformers, the share of best hypotheses equal to those of transformers, and BLEU.

    python benchmarks/seq2seq.py --model TEACHER --sources en.gz --references fr.gz --rows 500
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from benchmarks.sentences import LIMIT, parser_of, requests_of, rows_of
from factory.decoding import Generate
from factory.engines import EngineOptions, decode, open_engine
from factory.generation.hypotheses import ranked
from factory.prompting.tokenizing import decode_targets, load_tokenizer
from factory.sources import Row

DECODINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam 4": {"decoding": "beam", "beam_width": 4},
}
PEER = "transformers"
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    PEER: ("transformers", {}),
    "ctranslate2": ("ctranslate2", {}),
    "ctranslate2, int8": ("ctranslate2", {"compute_type": "int8"}),
}
HEAD = ("decoding", "system", "sent/s", "times", "same", "BLEU")


@dataclass(frozen=True)
class Decoded:
    """The best hypothesis of every sentence, in order, and how long they took."""

    ids: list[list[int]]
    seconds: float


def main() -> None:
    """Time every system with every decoding, in turn, and print the table."""
    asked = _arguments()
    rows = rows_of(asked)
    print(f"{len(rows)} sentences, {asked.threads} threads of {os.cpu_count()} cores, ", end="")
    print(f"batches of {asked.batch} sentences in transformers, limits {LIMIT}\n")
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    with tempfile.TemporaryDirectory() as cache:
        for decoding in DECODINGS:
            _compare(asked, rows, decoding, cache)


def _compare(asked: argparse.Namespace, rows: list[Row], decoding: str, cache: str) -> None:
    runs: dict[str, list[Decoded]] = {system: [] for system in SYSTEMS}
    for _ in range(asked.repeats):
        for system, made in runs.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                made.append(pool.submit(_decode, asked, decoding, system, cache).result())
    speeds = {
        system: len(rows) / statistics.median(run.seconds for run in made)
        for system, made in runs.items()
    }
    expected = runs[PEER][0].ids
    for system, made in runs.items():
        pairs = zip(made[0].ids, expected, strict=True)
        same = sum(ours == theirs for ours, theirs in pairs) / len(expected)
        times = speeds[system] / speeds[PEER]
        cells = (f"{speeds[system]:.1f}", f"{times:.2f}", f"{same:.1%}", _bleu(asked, made[0].ids))
        print("| " + " | ".join((decoding, system, *cells)) + " |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, "{source}</s>")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="sentences, for transformers")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--early-stopping", choices=["true", "false", "never"], default="false")
    return parser.parse_args()


def _decode(asked: argparse.Namespace, decoding: str, system: str, cache: str) -> Decoded:
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    beams = DECODINGS[decoding]
    stopping = {"true": True, "false": False}.get(asked.early_stopping, asked.early_stopping)
    stops = {"early_stopping": stopping} if beams else {}
    generate = Generate(max_new_tokens=LIMIT, **beams, **stops)
    engine_name, settings = SYSTEMS[system]
    settings = settings or ({"batch_size": asked.batch} if system == PEER else {})
    options = EngineOptions(asked.model, generate=generate, options=settings, cache=cache)
    requests = requests_of(asked, generate)
    engine = open_engine(engine_name, options)
    list(decode(engine, requests[: len(requests) // 10], generate.window))
    began = time.monotonic()
    results = {result.key: result for result in decode(engine, requests, generate.window)}
    seconds = time.monotonic() - began
    engine.close()
    ordered = [results[request.key] for request in requests]
    best = ranked([r.key for r in ordered], [0] * len(ordered), ordered, generate.exponent)
    first = {row.sample_id: row.hypothesis for row in best if row.rank == 0}
    found = [first[request.key] for request in requests]
    return Decoded([h.token_ids.tolist() if h else [] for h in found], seconds)


def _bleu(asked: argparse.Namespace, ids: list[list[int]]) -> str:
    import sacrebleu

    texts = decode_targets(load_tokenizer(asked.model), ids)
    references = [row.gold or "" for row in rows_of(asked)]
    return f"{sacrebleu.corpus_bleu(texts, [references]).score:.1f}"


if __name__ == "__main__":
    main()
