"""Which engine decodes held-out sources soonest, with its opening counted? The same rows, in turn.

Prints, for every engine, decoding and number of rows, the processor seconds (medians of the
repeats) that opening it took (imports and, in CTranslate2, the conversion), that decoding took, and
both; and how many texts are those of transformers. Systems take turns, each in a process of its
own. `transformers, scored` is how held-out sources were decoded before: with log-probabilities.

    OMP_NUM_THREADS=1 python benchmarks/heldout.py --model MODEL --sources en.gz --references fr.gz
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from benchmarks.sentences import LIMIT, parser_of, requests_of
from factory.decoding import Generate
from factory.engines import EngineOptions, decode, open_engine

SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam 4": {"decoding": "beam", "beam_width": 4},
}
PEER = "transformers"
SYSTEMS = {
    PEER: (PEER, False),
    "transformers, scored": (PEER, True),
    "ctranslate2": ("ctranslate2", False),
    "vllm": ("vllm", False),
}
HEAD = ("decoding", "rows", "engine", "opening", "decoding, s", "both", "same")


@dataclass(frozen=True)
class Run:
    """Processor seconds of opening and of decoding, and the best ids of every row, in order."""

    opening: float
    decoding: float
    ids: list[list[int]]

    @property
    def both(self) -> float:
        """Processor seconds from the first import to the last row."""
        return self.opening + self.decoding


def main() -> None:
    """Time every system, and print the table."""
    asked = _arguments()
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for search in asked.searches:
        for rows in asked.counts:
            _compare(asked, search, rows)


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, "<s>{source}<sep>")
    parser.add_argument("--counts", type=int, nargs="*", default=[200, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--searches", nargs="*", choices=SEARCHES, default=list(SEARCHES))
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=list(SYSTEMS))
    return parser.parse_args()


def _compare(asked: argparse.Namespace, search: str, rows: int) -> None:
    made: dict[str, list[Run]] = {system: [] for system in asked.systems}
    for _ in range(asked.repeats):
        for system, runs in made.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                runs.append(pool.submit(_decode, asked, system, search, rows).result())
    expected = made[PEER][0].ids if PEER in made else []
    for system, runs in made.items():
        parts = [[run.opening, run.decoding, run.both] for run in runs]
        medians = [f"{statistics.median(part):.1f}" for part in zip(*parts, strict=True)]
        same = sum(a == b for a, b in zip(runs[0].ids, expected, strict=False))
        cells = (search, str(rows), system, *medians, f"{same} of {rows}")
        print("| " + " | ".join(cells) + " |", flush=True)


def _decode(asked: argparse.Namespace, system: str, search: str, rows: int) -> Run:
    engine_name, logprobs = SYSTEMS[system]
    generate = Generate(max_new_tokens=LIMIT, **SEARCHES[search])
    asked.rows = rows
    requests = requests_of(asked, generate)
    began = time.process_time()
    options = EngineOptions(asked.model, generate=generate, logprobs=logprobs)
    engine = open_engine(engine_name, options)
    opened = time.process_time()
    results = {result.key: result for result in decode(engine, requests, generate.window)}
    done = time.process_time()
    engine.close()
    best = [results[request.key].hypotheses[0].token_ids.tolist() for request in requests]
    return Run(opened - began, done - opened, best)


if __name__ == "__main__":
    main()
