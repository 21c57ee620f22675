"""A generation score for choosing among epochs: what the saved model writes, not how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import sacrebleu
import torch
import torch.distributed as dist

from factory.engines import ABILITIES, EngineOptions, Request, Result, decode, open_engine
from factory.engines.choice import Kind, choose
from factory.errors import EngineError
from factory.generation.responses import Responses
from factory.manifest import Manifest
from factory.models import model_facts
from factory.query.catalog import connect
from factory.records import RunDirectory
from student.held_out import HeldOut, of_tokenizer
from student.plan import student_of

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerFast

ROWS = """
    SELECT sample_id, source, gold, meta, prompt_ids FROM samples
    WHERE split = 'validation' AND gold IS NOT NULL
    ORDER BY md5(sample_id), sample_id LIMIT {limit}
"""
# Rows of a batch in transformers: on a CPU a row that has ended costs as much as one that goes on.
BATCH_SIZE = {False: 32, True: 64}
WINDOW = 1024


class Validator:
    """The same validation sources after every epoch, shared out among the processes.

    Each process decodes its share, so that none waits for another longer than shares differ.
    """

    def __init__(
        self, run: RunDirectory, manifest: Manifest, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        """Read the sources, as prompts, with their gold.

        Raises:
            PromptError: the prompt cannot work with the student's tokenizer.
        """
        student = student_of(manifest)
        rows = _rows(run, student.validate_rows)
        held_out = HeldOut(run, manifest, tokenizer)
        self._requests = held_out.requests(rows)
        self._gold: list[str] = rows.column("gold").to_pylist()
        greedy = manifest.generate.greedily().model_copy(update={"window": WINDOW})
        self._generate = of_tokenizer(greedy, same=held_out.same)
        self._dtype, self._named = student.dtype, student.validate_engine
        self._responses = Responses(tokenizer, self._generate)

    def __len__(self) -> int:
        return len(self._requests)

    def engine(self, model: Path) -> str:
        """What decodes such a model: the engine that the manifest names, or the one that pays."""
        if self._named in ABILITIES:
            return str(self._named)
        kind = Kind.of_facts(model_facts(str(model), None, "student"))
        facts = (kind, self._dtype, self._generate, len(self._requests) // dist.get_world_size())
        return choose(*facts, cuda=torch.cuda.is_available(), beside_training=True)

    def score(self, model: Path, tell: Callable[[int, int], None]) -> float:
        """Compute chrF of the greedy texts of a saved model; every process gets the same number.

        `tell` is told how many of how many sources this process has decoded.

        Raises:
            EngineError: the engine cannot decode it.
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
        name = self.engine(model)
        asked = EngineOptions(
            str(model),
            dtype=self._dtype,
            generate=self._generate,
            options=_options(name),
            logprobs=False,
        )
        try:
            engine = open_engine(name, asked)
        except EngineError as error:
            key = "student.validate_engine"
            raise EngineError(key, name, f"cannot validate: {error.remedy}") from None
        results = list(_counted(decode(engine, requests, WINDOW), len(requests), tell))
        engine.close()
        best = [
            self._responses.answer(r.hypotheses[0])[0] if r.hypotheses else None for r in results
        ]
        texts = self._responses.texts([h.token_ids.tolist() if h else [] for h in best])
        return dict(zip((r.key for r in results), texts, strict=True))


def _counted(
    results: Iterable[Result], total: int, tell: Callable[[int, int], None]
) -> Iterator[Result]:
    for done, result in enumerate(results, 1):
        tell(done, total)
        yield result


def _options(engine: str) -> dict[str, object]:
    """Batches that fit the device, and no more threads than training takes."""
    if engine == "transformers":
        return {"batch_size": BATCH_SIZE[torch.cuda.is_available()]}
    return {"intra_threads": torch.get_num_threads()}


def _rows(run: RunDirectory, limit: int) -> pa.Table:
    with connect(run) as connection:
        return connection.sql(ROWS.format(limit=limit)).to_arrow_table()
