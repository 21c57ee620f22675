"""A generation score for choosing among epochs: what the saved model writes, not how sure it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sacrebleu
import torch.distributed as dist

from factory.decoding import Generate, token_limit
from factory.engines import EngineOptions, Request, Result, decode, open_engine
from factory.manifest import Manifest
from factory.prompting.prompts import Prompter
from factory.prompting.tokenizing import decode_targets
from factory.query.catalog import connect
from factory.records import RunDirectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROWS = """
    SELECT sample_id, source, gold, meta FROM samples
    WHERE split = 'validation' AND gold IS NOT NULL
    ORDER BY md5(sample_id), sample_id LIMIT ?
"""
BATCH_SIZE = 64


class Validator:
    """The same validation sources after every epoch, shared out among the processes."""

    def __init__(
        self, run: RunDirectory, manifest: Manifest, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        student = manifest.student
        rows = _rows(run, student.validate_rows) if student else []
        prompter = Prompter(tokenizer, manifest.prompt)
        encoded = prompter.encode([{**json.loads(m or "{}"), "source": s} for s, _, m in rows])[1]
        spec = manifest.generate.max_new_tokens
        self._requests = [
            Request(str(i), ids, token_limit(spec, len(ids))) for i, ids in enumerate(encoded)
        ]
        self._gold = [gold for _, gold, _ in rows]
        self._dtype = student.dtype if student else "float32"
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self._requests)

    def score(self, model: Path, tell: Callable[[int, int], None]) -> float:
        """Compute chrF of the greedy texts of a saved model; every process gets the same number.

        `tell` is told how many of how many sources this process has decoded.
        """
        mine = self._requests[dist.get_rank() :: dist.get_world_size()]
        shares: list[dict[str, str] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, self._decode(model, mine, tell))
        texts: dict[str, str] = {}
        for share in shares:
            texts |= share or {}
        ordered = [texts[request.key] for request in self._requests]
        return float(sacrebleu.corpus_chrf(ordered, [self._gold]).score)

    def _decode(
        self, model: Path, requests: Sequence[Request], tell: Callable[[int, int], None]
    ) -> dict[str, str]:
        options: dict[str, object] = {"batch_size": BATCH_SIZE}
        generate = Generate(window=BATCH_SIZE * 4)
        asked = EngineOptions(str(model), dtype=self._dtype, generate=generate, options=options)
        engine = open_engine("transformers", asked)
        results = list(_counted(decode(engine, requests, generate.window), len(requests), tell))
        engine.close()
        ids = [r.hypotheses[0].token_ids.tolist() if r.hypotheses else [] for r in results]
        texts = decode_targets(self._tokenizer, ids)
        return dict(zip((r.key for r in results), texts, strict=True))


def _counted(
    results: Iterable[Result], total: int, tell: Callable[[int, int], None]
) -> Iterator[Result]:
    for done, result in enumerate(results, 1):
        tell(done, total)
        yield result


def _rows(run: RunDirectory, limit: int) -> list[Any]:
    with connect(run) as connection:
        rows: list[Any] = connection.execute(ROWS, [limit]).fetchall()
    return [(source, gold, meta) for _, source, gold, meta in rows]
