"""A stage's rows on disk: written once, streamed, as a memory-mapped Arrow file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from factory.errors import RunError
from factory.files import digest, file_digest, read_json, replacing, write_json
from factory.manifest import Prompt
from factory.progress import progress
from factory.prompting.prompts import Prompter
from factory.prompting.tokenizing import encode_targets
from factory.records import RunDirectory
from factory.shards import SIGNATURE, check_file
from student.rows import Wanted, check, named, no_rows, stage_rows, tables_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

INTS = pa.list_(pa.int32())
FLOATS = pa.list_(pa.float32())
PLAIN = pa.schema([("sample_id", pa.string()), ("prompt_ids", INTS), ("target_ids", INTS)])
WITH_DISTRIBUTIONS = pa.schema(
    [
        *PLAIN,
        ("widths", INTS),
        ("token_logprobs", FLOATS),
        ("topk_ids", INTS),
        ("topk_logprobs", FLOATS),
        ("tail_logprob", FLOATS),
        ("counts", INTS),
        ("draws", pa.int32()),
    ]
)
ROWS = "rows.arrow"
LAYOUT = 3  # of the columns above; rows that were prepared under another are prepared anew
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Text:
    """How the rows of a run become this student's token ids. `start` begins every target."""

    tokenizer: PreTrainedTokenizerFast
    prompt: Prompt
    fingerprint: str
    same_as_teacher: bool
    context: int | None
    encoder_decoder: bool = False
    start: int | None = None


@dataclass(slots=True)
class DataRecord:
    """What stands in a stage's data folder; written after the rows themselves.

    `drawn` says whether their distributions were sampled; None where they have none. `portions`
    are the rows of each selection of a mixture, in its order; they lie one after another.
    """

    key: str
    sha256: str = ""
    drawn: bool | None = None
    rows: int = 0
    prompt_tokens: int = 0
    target_tokens: int = 0
    excluded: dict[str, int] = field(default_factory=dict)
    portions: list[int] = field(default_factory=list)

    def count(self, prompts: Any, targets: Any) -> None:
        """Add a batch of kept rows, given the lengths of their parts."""
        self.rows += len(prompts)
        self.prompt_tokens += pc.sum(prompts).as_py() or 0
        self.target_tokens += pc.sum(targets).as_py() or 0


def data_key(run: RunDirectory, wanted: Wanted, text: Text) -> str:
    """Digest of all that a stage's rows depend on."""
    files = [file["sha256"] for table in tables_of(wanted) for file in run.files(table)]
    vocabulary = wanted.vocabulary if wanted.distributions else None
    prompt = text.prompt.model_dump(mode="json")
    data = wanted.stage.data
    told = data if isinstance(data, str) else list(data)  # weights do not change the rows
    facts = [LAYOUT, told, wanted.distributions, vocabulary, files, prompt]
    start = [] if text.start is None else [text.start]
    return digest([*facts, text.fingerprint, text.same_as_teacher, text.context, *start])


def prepare(run: RunDirectory, wanted: Wanted, text: Text, folder: Path) -> DataRecord:
    """Write a stage's rows to `folder`, unless they stand there whole, under the same key.

    Raises:
        RunError: there are no rows, a column is missing, or distributions do not fit the targets.
        DamagedFile: a stored file does not match its checksum.
    """
    key = data_key(run, wanted, text)
    if (found := read_record(folder)) and found.key == key and _whole(folder, found):
        _check_draws_will_do(wanted, found)
        return found
    _check_stored(run, wanted, text)
    (folder / "data.json").unlink(missing_ok=True)
    record = DataRecord(key)
    schema = WITH_DISTRIBUTIONS if wanted.distributions else PLAIN
    with (
        replacing(folder / ROWS) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        for part in wanted.portions():
            for batch in _batches(run, part, text, record, schema):
                writer.write_batch(batch)
            _close(part, record)
    record.sha256 = file_digest(folder / ROWS)
    write_json(folder / "data.json", asdict(record))
    return record


def _close(part: Wanted, record: DataRecord) -> None:
    """Count the rows that a selection gave, which must be some."""
    rows = record.rows - sum(record.portions)
    if not rows:
        raise no_rows(part, record.excluded)
    record.portions.append(rows)


def read_record(folder: Path) -> DataRecord | None:
    """The record of prepared rows, or None where there are none."""
    path = folder / "data.json"
    return DataRecord(**read_json(path)) if path.is_file() else None


def _whole(folder: Path, record: DataRecord) -> bool:
    path = folder / ROWS
    return path.is_file() and file_digest(path) == record.sha256


class StageRows:
    """Prepared rows, memory-mapped: a row costs memory only while it is in a batch.

    The processes of a launch map the same file, whose pages the machine holds once.
    """

    def __init__(self, folder: Path) -> None:
        self._file = pa.ipc.open_file(pa.memory_map(str(folder / ROWS)))
        batches = [self._file.get_batch(i) for i in range(self._file.num_record_batches)]
        self._batches = [
            {name: _views(batch.column(name)) for name in batch.schema.names if name != "sample_id"}
            for batch in batches
        ]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self.prompt_lengths = self._lengths(batches, "prompt_ids")
        self.target_lengths = self._lengths(batches, "target_ids")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def row(self, index: int) -> dict[str, npt.NDArray[Any]]:
        """One row's columns as arrays over the mapped file: lists [n], `draws` [1].

        Of distributions `widths` holds the entries of each position, which `topk_ids`,
        `topk_logprobs` and, of draws, `counts` hold one after another.
        """
        at = int(np.searchsorted(self._starts, index, side="right")) - 1
        inner = index - int(self._starts[at])
        return {
            name: values[offsets[inner] : offsets[inner + 1]]
            for name, (offsets, values) in self._batches[at].items()
        }

    def sample_ids(self) -> pa.StringArray:
        """The sample id of each row."""
        batches = [self._file.get_batch(i) for i in range(self._file.num_record_batches)]
        columns = [batch.column("sample_id") for batch in batches]
        return pa.concat_arrays([pa.array([], pa.string()), *columns])

    @staticmethod
    def _lengths(batches: list[pa.RecordBatch], name: str) -> Ints:
        lengths = [pc.list_value_length(batch.column(name)).to_numpy() for batch in batches]
        return np.concatenate(lengths).astype(np.int32) if lengths else np.empty(0, np.int32)


def _views(column: pa.Array) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Offsets and flat values of a column; a plain column is a list of one entry a row."""
    if pa.types.is_list(column.type):
        return column.offsets.to_numpy(), column.values.to_numpy()
    return np.arange(len(column) + 1), column.to_numpy()


def _batches(
    run: RunDirectory, wanted: Wanted, text: Text, record: DataRecord, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    prompter = None if text.same_as_teacher else Prompter(text.tokenizer, text.prompt)
    title = f"preparing {wanted.stage.name}"
    with stage_rows(run, wanted) as batches, progress(title, None) as advance:
        for batch in batches:
            check(batch, wanted)
            columns = {name: batch.column(name) for name in batch.schema.names}
            columns["target_ids"] = _targets(batch, text)
            if prompter:
                columns["prompt_ids"] = _prompts(batch, prompter)
            if wanted.distributions:
                _check_aligned(batch, columns["target_ids"], wanted)
                _check_one_kind(batch, wanted, record)
            arrays = [columns[f.name].cast(f.type) for f in schema]
            whole = pa.RecordBatch.from_arrays(arrays, schema=schema)
            yield _fitting(whole, text, wanted, record)
            advance(len(batch))


def _targets(batch: pa.RecordBatch, text: Text) -> pa.Array:
    """Stored ids verbatim where the tokenizer is the teacher's; else the text encoded anew."""
    stored = batch.column("token_ids")
    if text.same_as_teacher and not stored.null_count:
        return stored
    targets = batch.column("target").to_pylist()
    encoded = encode_targets(text.tokenizer, [target or "" for target in targets], text.start)
    if text.same_as_teacher:
        pairs = zip(stored.to_pylist(), encoded, strict=True)
        encoded = [ids if ids is not None else anew for ids, anew in pairs]
    return pa.array(encoded, type=INTS)


def _prompts(batch: pa.RecordBatch, prompter: Prompter) -> pa.Array:
    metas = (json.loads(meta or "{}") for meta in batch.column("meta").to_pylist())
    sources = batch.column("source").to_pylist()
    rows = [{**meta, "source": source} for meta, source in zip(metas, sources, strict=True)]
    return pa.array(prompter.encode(rows)[1], type=INTS)


def _check_aligned(batch: pa.RecordBatch, targets: pa.Array, wanted: Wanted) -> None:
    """Every distribution must tell of the very tokens that are trained on."""
    told = batch.column("told_ids").cast(INTS)
    trained = targets.cast(INTS)
    if told.equals(trained):
        return
    pairs = zip(told, trained, strict=True)
    index = next(i for i, (a, b) in enumerate(pairs) if a != b)
    remedy = f"{named(batch, index)} has distributions of other tokens than its target's"
    raise RunError(wanted.place, None, f"{remedy}: generate again")


def _check_one_kind(batch: pa.RecordBatch, wanted: Wanted, record: DataRecord) -> None:
    """Draws and the most probable tokens are not the same term of a loss."""
    drawn = pc.greater(batch.column("draws"), 0)
    if record.drawn is None:
        record.drawn = drawn[0].as_py()
        _check_draws_will_do(wanted, record)
    index = pc.index(drawn, not record.drawn).as_py()
    if index >= 0:
        remedy = "mixes distributions that were sampled and that were not: train on them in stages"
        raise RunError(wanted.place, None, f"{named(batch, index)} {remedy}")


def _check_draws_will_do(wanted: Wanted, record: DataRecord) -> None:
    unfit = wanted.stage.objective.not_of_draws
    if record.drawn and unfit:
        place = f"student.stages.{wanted.stage.name}.objective"
        raise RunError(place, unfit, "draws do not tell it: train on forward_kl")


def _fitting(
    batch: pa.RecordBatch, text: Text, wanted: Wanted, record: DataRecord
) -> pa.RecordBatch:
    """The rows that can be trained on; the others are counted, by reason."""
    prompts = pc.list_value_length(batch.column("prompt_ids"))
    targets = pc.list_value_length(batch.column("target_ids"))
    both = pc.add(prompts, targets)
    longest = pc.max_element_wise(prompts, targets) if text.encoder_decoder else both
    fits = pc.less_equal(longest, text.context or 2**31 - 1)
    some = pc.and_(pc.greater(prompts, 0), pc.greater(targets, 0))
    _exclude(record, "longer than the context", fits)
    _exclude(record, "empty prompt or target", pc.or_(some, pc.invert(fits)))
    keep = pc.and_(fits, some)
    _check_budget(both.filter(keep), wanted)
    record.count(prompts.filter(keep), targets.filter(keep))
    return batch.filter(keep)


def _exclude(record: DataRecord, reason: str, fits: pa.Array) -> None:
    if left_out := len(fits) - fits.true_count:
        record.excluded[reason] = record.excluded.get(reason, 0) + left_out


def _check_budget(lengths: pa.Array, wanted: Wanted) -> None:
    longest = pc.max(lengths).as_py() or 0
    for key in ("batch_tokens", "micro_batch_tokens"):
        if longest > getattr(wanted.stage, key):
            place = f"student.stages.{wanted.stage.name}.{key}"
            raise RunError(
                place, getattr(wanted.stage, key), f"a row has {longest} tokens: raise it"
            )


def _check_stored(run: RunDirectory, wanted: Wanted, text: Text) -> None:
    """Files must match their checksums; distributions must be of the student's own tokenizer."""
    if wanted.distributions and not text.same_as_teacher:
        place = f"student.stages.{wanted.stage.name}.objective"
        remedy = "needs the teacher's tokenizer, and the student has another: use ce alone"
        raise RunError(place, wanted.stage.objective.distributions[0], remedy)
    for table in tables_of(wanted):
        for file in run.files(table):
            check_file(run, file)
    if wanted.distributions:
        for file in run.files("logits"):
            _check_signature(run, file["path"], text)


def _check_signature(run: RunDirectory, path: str, text: Text) -> None:
    metadata = pq.read_schema(run.path(path)).metadata or {}
    made_with = json.loads(metadata.get(SIGNATURE, b"{}")).get("tokenizer", text.fingerprint)
    if made_with != text.fingerprint:
        remedy = f"made with tokenizer {made_with}, the student has {text.fingerprint}"
        raise RunError(path, None, f"{remedy}: generate again")
