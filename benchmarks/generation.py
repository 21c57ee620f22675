"""How busy the generation job keeps the engine.

Tokens per second of a bare engine loop and of the job (streaming, ranks, Parquet, checksums), same
requests, one process, in turns.

    python benchmarks/generation.py --model DIR --sources FILE.gz [--k 16] [--rows 2000] [--pairs 3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.sentences import unlabeled_requests
from factory.engines import Engine, Request, open_engine
from factory.generation.generate import engine_options, fill_shards, plan_generation
from factory.manifest import Manifest
from factory.prompting.prompts import Prompter
from factory.prompting.tokenizing import load_tokenizer
from factory.reading import validate
from factory.records import RunDirectory
from factory.samples import build_samples
from factory.sources import Row, read_split


def main() -> None:
    """Print both rates, pair by pair, and the median ratio."""
    options = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        manifest = _manifest(options, Path(folder))
        asked = engine_options(RunDirectory(Path(folder)), manifest)
        engine = open_engine(options.engine, asked)
        requests = unlabeled_requests(manifest)
        _bare(engine, requests[:200])
        ratios = []
        for pair in range(options.pairs):
            run = RunDirectory(Path(folder) / f"run-{pair}")
            bare, job = _bare(engine, requests), _job(run, manifest, engine)
            ratios.append(job / bare)
            print(f"pair {pair}: bare {bare:,.0f} tok/s, job {job:,.0f} tok/s, {job / bare:.3f}")
        print(f"job / bare, median of {options.pairs}: {statistics.median(ratios):.3f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--sources", required=True)
    parser.add_argument("--template", default="<s>{source}<sep>")
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--check", type=int, default=0, help="candidates of a shard scored anew")
    parser.add_argument("--pairs", type=int, default=3)
    return parser.parse_args()


def _manifest(options: argparse.Namespace, folder: Path) -> Manifest:
    rows = read_split(validate(_tree(options, options.sources), "").data.splits()["unlabeled"])
    texts = (
        row.source
        for row, _ in zip(rows, range(options.rows), strict=False)
        if isinstance(row, Row)
    )
    sources = folder / "sources.txt"
    sources.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return validate(_tree(options, str(sources)), "benchmark")


def _tree(options: argparse.Namespace, sources: str) -> dict[str, object]:
    return {
        "name": "benchmark",
        "data": {"unlabeled": {"source": sources}},
        "prompt": {"template": options.template},
        "teacher": {"model": str(Path(options.model).resolve()), "engine": options.engine},
        "generate": {
            "max_new_tokens": {"ratio": 2.0, "plus": 10, "cap": 256},
            "shard_size": 500,
            "check": options.check,
        },
        "logits": {"capture": "top_k", "k": options.k},
    }


def _bare(engine: Engine, requests: list[Request]) -> float:
    """Everything queued at once, drained and thrown away."""
    began, tokens = time.monotonic(), 0
    for request in requests:
        engine.submit(request)
    while engine.unfinished:
        tokens += sum(len(h.token_ids) for r in engine.step() for h in r.hypotheses)
    return tokens / (time.monotonic() - began)


def _job(run: RunDirectory, manifest: Manifest, engine: Engine) -> float:
    assert manifest.teacher is not None
    prompter = Prompter(load_tokenizer(manifest.teacher.model), manifest.prompt)
    run.adopt(manifest)
    build_samples(run, manifest, prompter, key="benchmark")
    began = time.monotonic()
    plan_generation(run)
    tokens = fill_shards(run, engine, "benchmark")
    return tokens / (time.monotonic() - began)


if __name__ == "__main__":
    main()
