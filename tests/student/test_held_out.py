"""Validation and test ask a student as training asked it, token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
import torch.distributed as dist
import torch.multiprocessing

from factory.decoding import Generate
from factory.engines import EngineOptions, Request, open_engine
from factory.errors import EngineError
from factory.manifest import Manifest, Prompt
from factory.prompting.tokenizing import decode_targets, load_tokenizer, tokenizer_fingerprint
from factory.query.catalog import connect
from factory.reading import validate
from factory.records import RunDirectory
from factory.training import Stage, TrainTokenizer
from student.dataset import StageRows, Text, prepare
from student.held_out import HeldOut, of_tokenizer
from student.rows import Wanted
from student.tokenizers import train_tokenizer
from student.validation import Validator
from tests.engines import one_world, results
from tests.student.tiny import TEMPLATE, pairs, save_teacher, student_run

STUDENT = {"init": {"from_teacher": {"layers": 1}}, "stages": [{"name": "gold", "data": "gold"}]}
SAMPLES = "SELECT sample_id, source, gold, meta, prompt_ids FROM samples WHERE split = '{}'"


def unheard(done: int, total: int) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("held-out") / "teacher")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> RunDirectory:
    return student_run(tmp_path_factory.mktemp("held-out") / "run", teacher, STUDENT)


@pytest.fixture(scope="module")
def alone() -> None:
    """A process group of this process."""
    one_world()


def rows_of(run: RunDirectory, split: str) -> Any:
    with connect(run) as connection:
        return connection.sql(SAMPLES.format(split)).to_arrow_table()


def changed(run: RunDirectory, **edits: Any) -> Manifest:
    """The run's manifest with other values at `section__key`."""
    tree = json.loads(run.manifest().model_dump_json(exclude_unset=True))
    for place, value in edits.items():
        section, _, key = place.partition("__")
        tree.setdefault(section, {})[key] = value
    return validate(tree, "test")


@pytest.mark.parametrize("own", [False, True], ids=["teacher's tokenizer", "its own tokenizer"])
def test_prompts_are_those_of_training_id_by_id(own, run, teacher, tmp_path):
    tokenizer = load_tokenizer(str(teacher))
    if own:
        texts = (source for source, _ in pairs())
        tokenizer = train_tokenizer(texts, TrainTokenizer(vocab_size=300))
    print_ = tokenizer_fingerprint(tokenizer)
    text = Text(tokenizer, Prompt(template=TEMPLATE), print_, not own, context=None)
    wanted = Wanted(Stage(name="s", data="gold"), distributions=False, vocabulary=320)
    prepare(run, wanted, text, tmp_path)
    rows = StageRows(tmp_path)
    trained = {
        key: rows.row(i)["prompt_ids"].tolist()
        for i, key in enumerate(rows.sample_ids().to_pylist())
    }
    held_out = HeldOut(run, run.manifest(), tokenizer)
    asked = {r.key: r.prompt_ids for r in held_out.requests(rows_of(run, "train"))}
    assert len(trained) == 20
    assert trained == {key: asked[key] for key in trained}
    assert held_out.same is not own


def test_limits_are_the_manifests_for_each_row(run, teacher):
    lengths = {"ratio": 1.5, "plus": 1, "cap": 9}
    manifest = changed(run, generate__max_new_tokens=lengths)
    held_out = HeldOut(run, manifest, load_tokenizer(str(teacher)))
    asked = held_out.requests(rows_of(run, "test"))
    assert [r.max_new_tokens for r in asked] == [
        min(9, -(-3 * len(r.prompt_ids) // 2) + 1) for r in asked
    ]


def test_end_ids_are_of_the_teachers_tokenizer_alone():
    search = Generate(stop_token_ids=(7,), stop=("x",), max_new_tokens=5)
    assert of_tokenizer(search, same=True) == search
    other = of_tokenizer(search, same=False)
    assert (other.stop_token_ids, other.stop, other.max_new_tokens) == ((), ("x",), 5)


def expected(run: RunDirectory, teacher: Path, requests: list[Request], **generate: Any) -> float:
    """chrF of what transformers writes of validation sources."""
    options = EngineOptions(str(teacher), generate=Generate(max_new_tokens=12, **generate))
    found = results(open_engine("transformers", options), requests)
    rows = rows_of(run, "validation")
    keys = rows.column("sample_id").to_pylist()
    ids = [found[key].hypotheses[0].token_ids.tolist() for key in keys]
    texts = decode_targets(load_tokenizer(str(teacher)), ids)
    return float(sacrebleu.corpus_chrf(texts, [rows.column("gold").to_pylist()]).score)


@pytest.mark.parametrize("forced", [None, "dog", "<sep>"])
def test_validation_forces_the_first_token(forced, run, teacher, alone):
    tokenizer = load_tokenizer(str(teacher))
    forced = tokenizer.tokenize("dog")[0] if forced == "dog" else forced
    edits = {} if forced is None else {"generate__first_token": forced}
    manifest = changed(run, **edits)
    requests = HeldOut(run, manifest, tokenizer).requests(rows_of(run, "validation"))
    wanted = expected(run, teacher, requests, first_token=forced)
    assert Validator(run, manifest, tokenizer).score(teacher, unheard) == wanted
    free = expected(run, teacher, requests)
    assert (wanted == free) == (forced is None)


@pytest.mark.parametrize("engine", ["transformers", "ctranslate2"])
def test_validation_is_decoded_by_the_engine_that_is_named(engine, run, teacher, alone):
    pytest.importorskip(engine)
    tokenizer = load_tokenizer(str(teacher))
    plain = Validator(run, run.manifest(), tokenizer)
    assert plain.engine(teacher) == "transformers"  # four sources
    validator = Validator(run, changed(run, student__validate_engine=engine), tokenizer)
    assert validator.engine(teacher) == engine
    assert validator.score(teacher, unheard) == plain.score(teacher, unheard)


def test_an_engine_that_cannot_validate_is_one_line(run, teacher, alone, tmp_path):
    pytest.importorskip("ctranslate2")
    (tmp_path / "config.json").write_text((teacher / "config.json").read_text())
    tokenizer = load_tokenizer(str(teacher))
    validator = Validator(run, changed(run, student__validate_engine="ctranslate2"), tokenizer)
    with pytest.raises(EngineError, match=r"student.validate_engine: 'ctranslate2': cannot valid"):
        validator.score(tmp_path, unheard)


def _score(rank: int, root: str, model: str, told: str) -> None:
    """Note what one process of two says."""
    dist.init_process_group("gloo", init_method=f"file://{told}/store", rank=rank, world_size=2)
    run = RunDirectory(Path(root))
    validator = Validator(run, run.manifest(), load_tokenizer(model))
    Path(told, str(rank)).write_text(str(validator.score(Path(model), unheard)), "utf-8")
    dist.destroy_process_group()


def test_two_processes_share_the_sources_and_agree_on_the_score(run, teacher, alone, tmp_path):
    whole = Validator(run, run.manifest(), load_tokenizer(str(teacher))).score(teacher, unheard)
    torch.multiprocessing.spawn(_score, (str(run.root), str(teacher), str(tmp_path)), nprocs=2)
    assert [float((tmp_path / str(rank)).read_text("utf-8")) for rank in (0, 1)] == [whole] * 2
