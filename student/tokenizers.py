"""Where a student's tokenizer comes from, and how one is trained on the run's own text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from factory.errors import RunError
from factory.manifest import Manifest
from factory.prompting.tokenizing import load_tokenizer
from factory.query.catalog import connect
from factory.records import RunDirectory
from factory.training import Student, TrainTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BATCH = 1024
TRAINING_TEXT = """
    SELECT source FROM samples WHERE split IN ('train', 'unlabeled')
    UNION ALL
    SELECT target FROM gold WHERE target IS NOT NULL
"""


def student_tokenizer(
    run: RunDirectory, manifest: Manifest, student: Student
) -> PreTrainedTokenizerFast:
    """The student's tokenizer: trained, another model's, its own model's, or the teacher's.

    Raises:
        RunError: none of the four is there.
        PromptError: the tokenizer named cannot be loaded.
    """
    source = student.init.tokenizer
    if source and source.train:
        return train_tokenizer(training_text(run), source.train)
    if source and source.model:
        return load_tokenizer(source.model)
    if student.init.model:
        return load_tokenizer(student.init.model)
    if manifest.teacher is None:
        remedy = "no teacher to take a tokenizer from: add tokenizer: {train: {vocab_size: …}}"
        raise RunError("student.init", None, remedy)
    return load_tokenizer(manifest.teacher.model, manifest.teacher.revision)


def training_text(run: RunDirectory) -> Iterator[str]:
    """Training sources and the gold that may be seen, streamed."""
    with connect(run) as connection:
        for batch in connection.sql(TRAINING_TEXT).to_arrow_reader(BATCH):
            yield from batch.column(0).to_pylist()


def train_tokenizer(texts: Iterable[str], spec: TrainTokenizer) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `spec.vocab_size` tokens, special tokens first.

    It adds no special token by itself, and decoding gives the text back byte for byte. The first
    special token pads, the second begins, the third ends a target.
    """
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in spec.special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    pad, start, end, *others = spec.special_tokens
    named = {"sep_token": others[0]} if others else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        bos_token=start,
        eos_token=end,
        additional_special_tokens=others[1:],
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **named,
    )
