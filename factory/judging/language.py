"""The languages of source and target, identified by py3langid with the model that it carries."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pyarrow as pa

from factory.judging.families import Measuring
from factory.judging.texts import answer, measured

NAME = "language"


def identify(batch: pa.RecordBatch) -> pa.RecordBatch:
    """ISO 639-1 codes of source and text, and the probability of the text's among all languages.

    A text without letters is of no language.
    """
    sources, texts = batch.column("source").to_pylist(), batch.column("text").to_pylist()
    found = {text: _language(text) for text in {*sources, *texts}}
    return answer(
        batch,
        NAME,
        language_source=[found[source][0] for source in sources],
        language_target=[found[text][0] for text in texts],
        language_confidence=[found[text][1] for text in texts],
    )


def _language(text: str | None) -> tuple[str | None, float | None]:
    if text is None or not any(map(str.isalpha, text)):
        return None, None
    language, probability = _identifier().classify(text)
    return language, probability


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def measure_language(work: Measuring) -> Iterator[pa.RecordBatch]:
    """Measure the language of every candidate and of its source.

    Raises:
        StepFailed: a worker process died.
    """
    return measured(work, NAME, identify, ["source", "text"])
