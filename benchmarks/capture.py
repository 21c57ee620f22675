"""What distributions cost on their way out of vLLM: as dictionaries, flat lists, arrays, and kept.

One process, in turns, the first rows without log-probabilities. *thrown away* is the baseline of
a k: the same requests, what the core sends dropped unseen; the others make arrays [n, k + 1] of it.
*job* is seqkd's own: arrays, ranked, encoded, written and checksummed as Parquet beside the
candidates, shard by shard. Medians of the rounds; shares of the baseline, of the same round, in
tokens a second, and in processor time a token, which other work on the machine disturbs less
(where vLLM's core is in this process, as on a CPU; OMP_NUM_THREADS=1 lest waiting threads count).

    OMP_NUM_THREADS=1 python benchmarks/capture.py --model DIR --sources FILE.gz [--rows 1000]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sentences import unlabeled_requests
from factory.engines import Engine, Request, open_engine
from factory.engines.arrays import METHODS, hand_back, put, rows, take_over
from factory.engines.vllm import private_names
from factory.generation.generate import engine_options, fill_shards, plan_generation
from factory.manifest import Manifest
from factory.prompting.prompts import Prompter
from factory.prompting.tokenizing import load_tokenizer
from factory.reading import validate
from factory.records import RunDirectory
from factory.samples import build_samples
from factory.sources import Row, read_split

BASELINE = "thrown away"
Way = tuple[int | None, str]


@dataclass(frozen=True)
class Pace:
    """Seconds of the clock and of the processors, a token."""

    wall: float
    cpu: float

    @classmethod
    def of(cls, run: Callable[[], int]) -> Pace:
        """Time a function that tells how many tokens it made."""
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = run()
        return cls((time.perf_counter() - wall) / tokens, (time.process_time() - cpu) / tokens)


def main() -> None:
    """Time every way in turn, and print the table."""
    asked = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[Way, Callable[[], Pace]] = {}
        for k in (None, *asked.k):
            ways |= _ways(asked, k, Path(folder))
        for run in ways.values():
            run()
        paces: dict[Way, list[Pace]] = {way: [] for way in ways}
        for turn in range(asked.rounds):
            for way in list(ways) if turn % 2 else list(ways)[::-1]:
                paces[way].append(ways[way]())
    print(f"{asked.rows} sources, {asked.rounds} rounds, shards of {asked.shard_size}\n")
    print("| k | way | tok/s | of the baseline | CPU µs/token | more than the baseline |")
    print("|---|---|---:|---:|---:|---:|")
    for (k, name), measured in paces.items():
        print(_line(k, name, measured, paces.get((k, BASELINE), measured)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--sources", required=True)
    parser.add_argument("--template", default="<s>{source}<sep>")
    parser.add_argument("--k", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--precision", default="half")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--shard-size", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=["dict", "flat", "arrays", "job"])
    return parser.parse_args()


def _line(k: int | None, name: str, paces: Sequence[Pace], baseline: Sequence[Pace]) -> str:
    pairs = list(zip(paces, baseline, strict=True))
    rate = 1 / statistics.median(pace.wall for pace in paces)
    share = statistics.median(base.wall / pace.wall for pace, base in pairs)
    cpu = 1e6 * statistics.median(pace.cpu for pace in paces)
    more = statistics.median(pace.cpu / base.cpu - 1 for pace, base in pairs)
    return f"| {k or '–'} | {name} | {rate:,.0f} | {share:.3f} | {cpu:.1f} | {more:+.1%} |"


def _ways(asked: argparse.Namespace, k: int | None, folder: Path) -> dict[Way, Callable[[], Pace]]:
    """Each way of this k as a function that times it once."""
    manifest = _manifest(asked, folder, k)
    engine = open_engine("vllm", engine_options(RunDirectory(folder), manifest))
    requests, window = unlabeled_requests(manifest), manifest.generate.window

    def bare(take: Callable[[Any], Any] | None, width: int | None, flat: bool = True) -> Pace:
        made = list(_asked(requests, width, flat))
        return Pace.of(lambda: _drained(engine, iter(made), window, take))

    def told(output: Any) -> Any:
        return rows(output.logprobs, k or 0)

    ways: dict[Way, Callable[[], Pace]] = {
        (k, BASELINE): lambda: _with(_drop, lambda: bare(None, k)),
        (k, "dict"): lambda: bare(lambda output: _of_dicts(output, k or 0), k, flat=False),
        (k, "flat"): lambda: _with(lambda: hand_back(private_names()), lambda: bare(told, k)),
        (k, "arrays"): lambda: bare(told, k),
        (k, "job"): lambda: _job(folder, manifest, engine),
    }
    wanted = {BASELINE, *(asked.only if k else ["job"])}
    return {way: run for way, run in ways.items() if way[1] in wanted}


def _with(change: Callable[[], None], run: Callable[[], Pace]) -> Pace:
    """Time something with vLLM's two methods changed, and put ours back."""
    change()
    try:
        return run()
    finally:
        hand_back(private_names())
        take_over(private_names())


def _drop() -> None:
    """Let nothing be made of what the core sends."""
    names = private_names()
    hand_back(names)
    for name in METHODS:
        put(names, name, _dropping())


def _dropping() -> Callable[[Any, Any], None]:
    def drop(processor: Any, sent: Any) -> None:
        del processor, sent

    return drop


def _asked(
    requests: Sequence[Request], k: int | None, flat: bool
) -> Iterator[tuple[str, Any, Any]]:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    for request in requests:
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=request.max_new_tokens,
            logprobs=k,
            flat_logprobs=flat,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        yield request.key, {"prompt_token_ids": request.prompt_ids}, sampling


def _drained(
    engine: Any, asked: Iterator[Any], window: int, take: Callable[[Any], Any] | None
) -> int:
    """A bare loop over the engine, the window kept full."""
    bare, tokens, inside = engine._engine, 0, 0
    while True:
        for request in asked:
            bare.add_request(*request)
            inside += 1
            if inside == window:
                break
        if not inside:
            return tokens
        for output in bare.step():
            inside -= 1
            tokens += len(output.outputs[0].token_ids)
            if take:
                take(output.outputs[0])


def _of_dicts(output: Any, k: int) -> tuple[Any, Any]:
    """Rows of the realised token and the k highest ranks."""
    ids, logprobs = [], []
    for token, told in zip(output.token_ids, output.logprobs, strict=True):
        ranked = sorted((entry.rank, other) for other, entry in told.items())[:k]
        row = [token, *(other for _, other in ranked)]
        ids.append(row)
        logprobs.append([told[other].logprob for other in row])
    return np.array(ids, np.int32), np.array(logprobs, np.float32)


def _manifest(asked: argparse.Namespace, folder: Path, k: int | None) -> Manifest:
    sources = folder / "sources.txt"
    kept = read_split(validate(_tree(asked, asked.sources, k), "").data.splits()["unlabeled"])
    texts = [row.source for row, _ in zip(kept, range(asked.rows), strict=False)
             if isinstance(row, Row)]  # fmt: skip
    sources.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return validate(_tree(asked, str(sources), k), "benchmark")


def _tree(asked: argparse.Namespace, sources: str, k: int | None) -> dict[str, object]:
    capture = {"capture": "top_k", "k": k, "precision": asked.precision}
    return {
        "name": "benchmark",
        "data": {"unlabeled": {"source": sources}},
        "prompt": {"template": asked.template},
        "teacher": {"model": str(Path(asked.model).resolve()), "engine": "vllm"},
        "generate": {
            "max_new_tokens": {"ratio": 2.0, "plus": 10, "cap": 256},
            "shard_size": asked.shard_size,
            "check": 0,
        },
        "logits": capture if k else {"capture": "none"},
    }


def _job(folder: Path, manifest: Manifest, engine: Engine) -> Pace:
    """The job's own loop over a run of its own, samples and plan made before."""
    assert manifest.teacher is not None
    with tempfile.TemporaryDirectory(dir=folder) as root:
        run = RunDirectory(Path(root))
        prompter = Prompter(load_tokenizer(manifest.teacher.model), manifest.prompt)
        run.adopt(manifest)
        build_samples(run, manifest, prompter, key="benchmark")
        plan_generation(run)
        return Pace.of(lambda: fill_shards(run, engine, "benchmark"))


if __name__ == "__main__":
    main()
