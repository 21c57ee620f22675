"""The sentences that the decoding benchmarks share: their arguments, rows and requests."""

from __future__ import annotations

import argparse
import os
from typing import Any

from factory.decoding import Generate, draw_seed, token_limit
from factory.engines import Request
from factory.manifest import Manifest, Prompt, Split
from factory.prompting.prompts import Prompter
from factory.prompting.tokenizing import load_tokenizer
from factory.sources import Row, read_split

LIMIT: dict[str, Any] = {"ratio": 2.0, "plus": 10, "cap": 256}


def parser_of(description: str | None, template: str) -> argparse.ArgumentParser:
    """A parser of the model, the sentences, and how many of them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, type=os.path.abspath, help="folder")
    parser.add_argument("--sources", required=True)
    parser.add_argument("--references", required=True)
    parser.add_argument("--template", default=template)
    parser.add_argument("--rows", type=int, default=500)
    return parser


def rows_of(asked: argparse.Namespace) -> list[Row]:
    """The first rows that can be used."""
    split = Split(source=asked.sources, target=asked.references)
    rows = (row for row in read_split(split) if isinstance(row, Row))
    return [row for row, _ in zip(rows, range(asked.rows), strict=False)]


def requests_of(asked: argparse.Namespace, generate: Generate, seed: int = 17) -> list[Request]:
    """A request a row, its limit and seeds as a job would set them."""
    prompter = Prompter(load_tokenizer(asked.model), Prompt(template=asked.template))
    _, encoded = prompter.encode([{"source": row.source} for row in rows_of(asked)])
    draws = range(generate.num_return if generate.decoding == "sample" else 0)
    return [
        Request(
            key=str(number),
            prompt_ids=ids,
            max_new_tokens=token_limit(generate.max_new_tokens, len(ids)),
            seeds=tuple(draw_seed(seed, str(number), ordinal) for ordinal in draws),
        )
        for number, ids in enumerate(encoded)
    ]


def unlabeled_requests(manifest: Manifest) -> list[Request]:
    """The requests that a job makes of the manifest's unlabeled split."""
    assert manifest.teacher is not None
    prompter = Prompter(load_tokenizer(manifest.teacher.model), manifest.prompt)
    rows = [row for row in read_split(manifest.data.splits()["unlabeled"]) if isinstance(row, Row)]
    _, encoded = prompter.encode([{"source": row.source} for row in rows])
    spec = manifest.generate.max_new_tokens
    return [Request(str(i), ids, token_limit(spec, len(ids))) for i, ids in enumerate(encoded)]
