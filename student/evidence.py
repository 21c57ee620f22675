"""What a run knows of a stage's model, and a copy must know too: rows, and what it decoded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.decoding import Generate, token_limit
from factory.errors import StepFailed
from factory.generation.responses import Responses
from factory.manifest import Manifest
from factory.prompting.prompts import Prompter
from factory.query.catalog import connect
from factory.records import RunDirectory
from factory.shards import check_file
from student.dataset import StageRows
from student.decode import decoded
from student.likeness import REMEDY, Decoded, Pair
from student.plan import PlannedStage, plan
from student.systems import system

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROWS = 16
# Without predictions the sources of the run itself, held-out ones first.
CHOSEN = """
    SELECT s.sample_id, s.source, s.meta, s.prompt_ids, p.token_ids, p.text
    FROM samples s {join} JOIN told p USING (sample_id)
    WHERE p.token_ids IS NOT NULL OR NOT $predicted
    ORDER BY s.split IN ('train', 'unlabeled'), md5(s.sample_id), s.sample_id
    LIMIT $rows
"""
NOTHING = pa.schema(
    [("sample_id", pa.string()), ("token_ids", pa.list_(pa.int32())), ("text", pa.string())]
)


class Evidence:
    """Some rows of a run, always the same, as a copy's own tokenizer encodes them."""

    def __init__(
        self,
        run: RunDirectory,
        manifest: Manifest,
        planned: PlannedStage,
        tokenizer: PreTrainedTokenizerFast,
        generate: Generate,
    ) -> None:
        """Look for predictions; `generate` is how held-out sources are decoded."""
        self._run, self._manifest, self._planned = run, manifest, planned
        self._prompter = Prompter(tokenizer, manifest.prompt)
        self._responses = Responses(tokenizer, generate)
        found = self._predictions()
        scored = run.step("evaluate").get("files", ())
        self.evaluated = bool(found) and all(file in scored for file in found)
        # Predictions are without their reasoning, which a model writes all the same.
        self.predictions = found if generate.reasoning == "keep" else []

    def pairs(self) -> list[Pair]:
        """Prompts and targets that the stage was trained on, spread over its rows."""
        rows = StageRows(self._planned.folder / "data")
        chosen = np.unique(np.linspace(0, len(rows) - 1, ROWS).astype(int)).tolist()
        columns = [rows.row(index) for index in chosen]
        return [(row["prompt_ids"].tolist(), row["target_ids"].tolist()) for row in columns]

    def decoded(self, ends: set[int], forced: bool) -> list[Decoded]:
        """Predictions of the stage's model; without any, prompts whose targets are empty.

        `ends` are its end tokens; `forced` says that the last token of a limit is made to be one.

        Raises:
            StepFailed: the tokenizer gives other ids or another text than the run has.
        """
        rows = self._chosen()
        encoded = self._prompter.encode([_fields(row) for row in rows])[1]
        texts = self._responses.texts([row["token_ids"] or [] for row in rows])
        found = []
        for row, prompt, text in zip(rows, encoded, texts, strict=True):
            other_ids = self._planned.init.same_tokenizer and prompt != row["prompt_ids"]
            if other_ids or (self.predictions and text != row["text"]):
                what = "ids of its prompt" if other_ids else "text of its tokens"
                place = f"tokenizer: sample {row['sample_id']}"
                raise StepFailed(f"{place}: other {what} than the run has: {REMEDY}")
            target = row["token_ids"] or []
            limit = token_limit(self._manifest.generate.max_new_tokens, len(prompt))
            if forced and len(target) == limit:
                target = target[:-1]
            cut = not target or target[-1] not in ends
            found.append(Decoded(row["sample_id"], prompt, target, cut))
        return found

    def _predictions(self) -> list[dict[str, Any]]:
        """The files of what this very model decoded, where it was evaluated."""
        last = list(plan(self._run, self._manifest))[-1]
        if last.stage.name != self._planned.stage.name or not last.done():
            return []
        record = decoded(self._run, system(self._run, self._manifest, "student"))
        return list(record["files"]) if record else []

    def _chosen(self) -> list[dict[str, Any]]:
        for file in self.predictions:
            check_file(self._run, file)
        tables = [
            pq.read_table(self._run.path(file["path"]), columns=NOTHING.names)
            for file in self.predictions
        ]
        told = pa.concat_tables(tables) if tables else NOTHING.empty_table()
        with connect(self._run) as connection:
            connection.register("told", told)
            sql = CHOSEN.format(join="" if tables else "LEFT")
            asked = {"predicted": bool(tables), "rows": ROWS}
            rows = connection.sql(sql, params=asked).to_arrow_reader().read_all()
        found: list[dict[str, Any]] = rows.to_pylist()
        return found


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    return {**json.loads(row["meta"] or "{}"), "source": row["source"]}
