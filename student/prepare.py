"""Process entry: `python -m student.prepare RUN_DIR KEY` writes what training starts from.

The student's tokenizer and first model, and the rows of every stage. Runs before the launcher, so
that a mistake is told once, before any process group is formed.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from factory.architecture import larger_than_teacher
from factory.errors import RunError
from factory.files import write_json
from factory.manifest import Manifest
from factory.models import context_of
from factory.prompting.tokenizing import load_tokenizer, target_start, tokenizer_fingerprint
from factory.records import RunDirectory
from factory.training import Stage
from student.chunks import ChunkedHead
from student.copying import copied_parameters
from student.course import check_course
from student.dataset import StageRows, Text, prepare
from student.entry import run_process
from student.initialise import Initialised, count_parameters, initialise, load, save
from student.packing import check_packing
from student.plan import INIT, InitRecord, init_key, student_of
from student.rows import Wanted
from student.schedule import freeze
from student.tokenizers import student_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

COPIED = "copied.json"


def prepare_run(run: RunDirectory, _: str) -> None:
    """Prepare the start and every stage; what stands under a key of its own is left alone.

    Raises:
        UserError: the manifest, the selections or the stored files do not allow the training.
        DamagedFile: a stored file does not match its checksum.
    """
    manifest = run.manifest()
    student = student_of(manifest)
    if student.deepspeed.config:
        from student.engine import check_settings  # DeepSpeed takes a while to import

        check_settings(student)
    folder = run.path("student", INIT)
    init = _start(run, manifest, folder)
    if student.packing:
        check_packing(load(str(folder)))
    if student.chunked_head:
        ChunkedHead(load(str(folder)))
    tokenizer = load_tokenizer(str(folder))
    text = Text(
        tokenizer,
        manifest.prompt,
        init.tokenizer,
        init.same_tokenizer,
        init.context,
        init.encoder_decoder,
        target_start(tokenizer, manifest.generate.first_token, str(folder)),
    )
    for stage in student.stages:
        if stage.freeze:
            freeze(load(str(folder)), stage)
        wanted = Wanted(stage, bool(stage.objective.distributions), init.vocabulary)
        rows = run.path("student", stage.name, "data")
        data = prepare(run, wanted, _taught(run, stage, text), rows)
        check_course(stage, StageRows(rows), data.portions or [data.rows], student.processes)


def _taught(run: RunDirectory, stage: Stage, text: Text) -> Text:
    """Of a stage with a teacher beside it: rows that it can read too, as it reads them."""
    if not stage.objective.hidden:
        return text
    if not text.same_as_teacher:
        place = f"student.stages.{stage.name}.objective"
        remedy = "needs the teacher's tokenizer, and the student has another: use ce alone"
        raise RunError(place, "hidden", remedy)
    limits = (text.context, run.record().get("teacher", {}).get("context"))
    return replace(text, context=min(filter(None, limits), default=None))


def _start(run: RunDirectory, manifest: Manifest, folder: Path) -> InitRecord:
    key = init_key(run, manifest)
    if (found := InitRecord.read(folder)) and found.key == key:
        return found
    shutil.rmtree(folder, ignore_errors=True)
    student = student_of(manifest)
    tokenizer = student_tokenizer(run, manifest, student)
    begun = initialise(manifest, student, tokenizer)
    save(begun.model, tokenizer, folder)
    write_json(folder / COPIED, begun.copied_as_record())
    record = _record(run, key, begun, tokenizer)
    if warning := larger_than_teacher(manifest, record.parameters):
        print(f"seqkd: warning: {warning}", file=sys.stderr)  # noqa: T201
    record.write(folder)
    return record


def _record(
    run: RunDirectory, key: str, begun: Initialised, tokenizer: PreTrainedTokenizerFast
) -> InitRecord:
    config = begun.model.config.get_text_config()
    fingerprint = tokenizer_fingerprint(tokenizer)
    teacher = run.record().get("tokenizer", {}).get("fingerprint")
    return InitRecord(
        key=key,
        parameters=count_parameters(begun.model),
        copied_layers=list(begun.copied_layers),
        tokenizer=fingerprint,
        same_tokenizer=fingerprint == teacher,
        context=context_of(config.to_dict()),
        vocabulary=config.vocab_size,
        encoder_decoder=bool(begun.model.config.is_encoder_decoder),
        copied_encoder_layers=list(begun.copied_encoder_layers),
        copied_parameters=copied_parameters(begun.model, begun.copies),
    )


if __name__ == "__main__":
    run_process(prepare_run)
