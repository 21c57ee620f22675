"""Held-out sources as a model is asked for them: the prompts of its training, limits and stops."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa

from factory.decoding import Generate, token_limit
from factory.engines import Request
from factory.manifest import Manifest
from factory.prompting.prompts import Prompter
from factory.prompting.tokenizing import tokenizer_fingerprint
from factory.records import RunDirectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class HeldOut:
    """Makes requests of rows of `samples` for a model with some tokenizer.

    With the teacher's tokenizer the stored ids are the prompt, as in training; with another the
    row is rendered anew, by the renderer that training uses. `same` tells which.
    """

    def __init__(
        self, run: RunDirectory, manifest: Manifest, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        """Look at the tokenizer.

        Raises:
            PromptError: the prompt cannot work with it.
        """
        teachers = run.record().get("tokenizer", {}).get("fingerprint")
        self.same = tokenizer_fingerprint(tokenizer) == teachers
        self._limit = manifest.generate.max_new_tokens
        self._prompter = None if self.same else Prompter(tokenizer, manifest.prompt)

    def requests(self, rows: pa.RecordBatch | pa.Table) -> list[Request]:
        """One a row, under its sample id.

        Args:
            rows: columns `sample_id`, `source`, `meta` and `prompt_ids` of the view `samples`.
        """
        keys = rows.column("sample_id").to_pylist()
        prompts = zip(keys, self._prompts(rows), strict=True)
        return [Request(key, ids, token_limit(self._limit, len(ids))) for key, ids in prompts]

    def _prompts(self, rows: pa.RecordBatch | pa.Table) -> list[list[int]]:
        if self._prompter is None:
            stored: list[list[int]] = rows.column("prompt_ids").to_pylist()
            return stored
        pairs = zip(rows.column("source").to_pylist(), rows.column("meta").to_pylist(), strict=True)
        return self._prompter.encode([{**json.loads(m or "{}"), "source": s} for s, m in pairs])[1]


def of_tokenizer(search: Generate, *, same: bool) -> Generate:
    """A decoding for a student: ids that end a target are of the teacher's tokenizer alone."""
    if same or not search.stop_token_ids:
        return search
    kept = search.model_fields_set - {"stop_token_ids"}
    return Generate(**{key: getattr(search, key) for key in kept})
