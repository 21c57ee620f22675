"""Trained students out of their runs: real runs, real folders, loaded as a stranger would."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from typer.testing import CliRunner

from factory.cards.model import render
from factory.checking import check_manifest
from factory.cli import app
from factory.decoding import Generate
from factory.delivery import Order
from factory.errors import DamagedFile, RunError, SeqkdError, StepFailed
from factory.files import file_digest, read_json, write_json
from factory.manifest import Manifest
from factory.prompting.tokenizing import load_tokenizer
from factory.records import RunDirectory
from student.decode import decode_system
from student.delivery import Asked, Delivery, deliver
from student.evaluate import evaluate
from student.generation import generation_config
from student.likeness import Decoded, Likeness, _parting
from student.plan import plan
from student.prepare import prepare_run
from tests.models import manifest_tree
from tests.runs import add_samples, make_run
from tests.student.tiny import (
    TEMPLATE,
    launch,
    pairs,
    save_teacher,
    student_run,
)

STAGE = {"learning_rate": 0.01, "batch_tokens": 128}
STAGES = [
    STAGE | {"name": "pseudolabel", "data": "pseudolabels", "objective": {"forward_kl": 1.0}},
    STAGE | {"name": "gold", "data": "gold"},
]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of two stages, its student cut from its teacher and evaluated."""
    root = tmp_path_factory.mktemp("decoder")
    student = {"init": {"from_teacher": {"layers": 2}}, "stages": STAGES}
    made = student_run(
        root / "run",
        save_teacher(root / "teacher"),
        student,
        evaluate={"systems": ["student"], "folds": 0},
        languages=["en", "fr"],
        license="cc-by-4.0",
    )
    train(made)
    decode_system(made, "student")
    evaluate(made, "evaluate-key")
    return made


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path) -> RunDirectory:
    """A run without a teacher: an encoder–decoder trained on gold, and never evaluated."""
    made = make_run(
        tmp_path_factory.mktemp("seq2seq") / "run",
        teacher=None,
        prompt={"template": TEMPLATE},
        generate={"max_new_tokens": {"ratio": 1.0, "plus": 4, "cap": 16}},
        data={"train": {"path": "/nowhere/rows.tsv", "target": "target"}},
        student={"init": {"model": str(tiny_t5)}, "stages": [STAGES[1]]},
    )
    rows = enumerate(pairs()[:24])
    add_samples(
        made,
        [
            {"sample_id": f"s{i:02d}", "source": source, "gold": gold, "gold_visible": True}
            for i, (source, gold) in rows
        ],
    )
    train(made)
    return made


def train(run: RunDirectory) -> None:
    prepare_run(run, "train-key")
    done = launch(run)
    assert done.returncode == 0, done.stdout + done.stderr


def copy(run: RunDirectory, folder: Path) -> RunDirectory:
    return RunDirectory(Path(shutil.copytree(run.root, folder / "copy")))


def delivery_of(run: RunDirectory, folder: Path, **order: Any) -> Delivery:
    """The last stage of a run, on its way into a folder that is there."""
    folder.mkdir(exist_ok=True)
    manifest = run.manifest()
    asked = Asked(str(folder), "OUT", **{"format": "hf"} | order)
    return Delivery(run, manifest, list(plan(run, manifest))[-1], asked)


def delivered(run: RunDirectory, folder: Path, **order: Any) -> dict[str, Any]:
    """What the process writes into a folder, and the card; without the process."""
    folder.mkdir(exist_ok=True)
    asked = {"folder": str(folder), "place": "OUT", "format": "hf"} | order
    deliver(run, json.dumps(asked))
    facts: dict[str, Any] = read_json(folder / "seqkd.json")
    (folder / "README.md").write_text(render(run, facts), encoding="utf-8")
    return facts


def shown(folder: Path, source: str) -> str:
    """What the code of a folder's card prints, given a source."""
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.S)
    for placed, put in (("path/to/this/folder", str(folder)), ("Put a source here.", source)):
        assert placed in code
        code = code.replace(placed, put)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "README.md", "exec"), {})
    return said.getvalue().removesuffix("\n")


def predictions(run: RunDirectory) -> dict[str, str]:
    rows = pq.read_table(run.path("predictions", "student-test.parquet")).to_pylist()
    sources = {f"s{i:02d}": source for i, (source, _) in enumerate(pairs())}
    return {sources[row["sample_id"]]: row["text"] for row in rows}


@pytest.fixture(scope="module")
def folder(decoder: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command itself makes of the decoder's run."""
    out = tmp_path_factory.mktemp("out") / "model"
    result = CliRunner().invoke(app, ["deliver", str(decoder.root), str(out), "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["check"] == {
        "tolerance": 0.0,
        "positions": facts["check"]["positions"],
        "largest": 0.0,
        "mean": 0.0,
        "decoded": 4,
        "same": 4,
        "evaluated": True,
    }
    assert facts["check"]["positions"] > 16
    assert (facts["stage"], facts["dtype"], facts["format"]) == ("gold", "float32", "hf")
    assert [path.name for path in out.parent.iterdir()] == ["model"]
    return out


def test_the_folder_is_the_model_to_the_last_bit(decoder: RunDirectory, folder: Path):
    trained = AutoModelForCausalLM.from_pretrained(decoder.path("student", "gold", "model"))
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(4, 20)[None]
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, trained(ids).logits)
    text = pairs()[0][0]
    start = AutoTokenizer.from_pretrained(decoder.path("student", "init"))
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == start(text).input_ids
    told = GenerationConfig.from_pretrained(folder)
    named = (told.eos_token_id, told.pad_token_id, told.bos_token_id, told.max_new_tokens)
    assert named == (2, 0, 1, 12)
    assert (told.do_sample, told.num_beams) == (False, 1)
    assert read_json(folder / "seqkd.json")["prompt"] == {"template": TEMPLATE}


def test_the_code_of_the_card_runs_and_writes_what_was_evaluated(
    decoder: RunDirectory, folder: Path
):
    source, text = next(iter(predictions(decoder).items()))
    assert shown(folder, source) == text


def test_the_card_is_what_hubs_read_and_tells_where_the_model_comes_from(folder: Path):
    card = ModelCard.load(folder / "README.md")
    assert (card.data.language, card.data.license) == (["en", "fr"], "cc-by-4.0")
    told = card.data.to_dict()
    assert [told["library_name"], told["pipeline_tag"]] == ["transformers", "translation"]
    results = {result.metric_type: result for result in card.data.eval_results}
    assert set(results) == {"bleu", "chrf"}
    assert "tok:13a" in results["bleu"].metric_args["signature"]
    assert results["chrf"].dataset_split == "test"
    text = card.text
    for told in (
        "| teacher | teacher |",
        "| its fingerprint | teacher-print |",
        "| pseudolabel | pseudolabels | 1 forward\\_kl | 40 |",
        "| gold | gold | 1 ce | 20 |",
        "It started from layers 0, 2 (counted from 0) of teacher: ",
        "its logits are equal to the last bit",
    ):
        assert told in text
    assert str(folder.parent) not in text


def test_what_was_delivered_teaches_and_starts_other_runs(folder: Path, tmp_path: Path):
    tree = manifest_tree(tmp_path / "corpus", folder)
    assert check_manifest(Manifest.model_validate(tree))["rows"]["train"] == 60
    tree["student"] = {"init": {"model": str(folder)}, "stages": [STAGES[1]]}
    assert check_manifest(Manifest.model_validate(tree))["rows"]["train"] == 60


def test_a_place_is_replaced_with_force_if_all_in_it_is_ours(decoder: RunDirectory, folder: Path):
    def told(*more: str) -> str:
        result = CliRunner().invoke(app, ["deliver", str(decoder.root), str(folder), *more])
        assert isinstance(result.exception, RunError)
        return str(result.exception)

    assert told().endswith("holds what was delivered before: --force replaces it")
    own = folder / "notes.txt"
    own.write_text("mine")
    assert "'notes.txt': stands there, and is not ours" in told("--force")
    own.unlink()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype_is_near(decoder: RunDirectory, tmp_path: Path, dtype: str):
    told = delivered(decoder, tmp_path / "out", dtype=dtype)["check"]
    assert 0 < told["mean"] <= told["tolerance"] == {"bfloat16": 0.1, "float16": 0.02}[dtype]
    stored = load_file(tmp_path / "out" / WEIGHTS)
    assert {str(tensor.dtype) for tensor in stored.values()} == {f"torch.{dtype}"}


def test_an_earlier_stage_has_no_scores(decoder: RunDirectory, tmp_path: Path):
    told = delivered(decoder, tmp_path / "out", stage="pseudolabel")
    assert (told["stage"], told["check"]["evaluated"]) == ("pseudolabel", False)
    assert told["check"]["decoded"] == told["check"]["same"] == 16
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.eval_results is None
    assert "| gold | gold |" not in card.text


@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_ctranslate2_computes_the_same_decoder(
    decoder: RunDirectory, tmp_path: Path, quantization: str
):
    pytest.importorskip("ctranslate2")
    order = {"format": "ctranslate2", "quantization": quantization}
    told = delivered(decoder, tmp_path / "out", **order)["check"]
    assert told["mean"] <= told["tolerance"] == {"float32": 1e-3, "int8": 0.2}[quantization]
    assert {"model.bin", "tokenizer.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    if quantization == "float32":
        assert told["same"] == 4
        source, text = next(iter(predictions(decoder).items()))
        assert shown(tmp_path / "out", source) == text


def test_an_encoder_decoder_goes_out_both_ways(seq2seq: RunDirectory, tmp_path: Path):
    told = delivered(seq2seq, tmp_path / "hf")
    assert told["encoder_decoder"]
    assert told["check"]["tolerance"] == 0.0
    assert told["check"]["decoded"] == told["check"]["same"] == 16
    config = GenerationConfig.from_pretrained(tmp_path / "hf")
    assert (config.decoder_start_token_id, config.max_new_tokens) == (0, 16)
    text = shown(tmp_path / "hf", pairs()[0][0])
    assert text
    pytest.importorskip("ctranslate2")
    order = {"format": "ctranslate2", "quantization": "float32"}
    assert delivered(seq2seq, tmp_path / "ct", **order)["check"]["same"] == 16
    assert shown(tmp_path / "ct", pairs()[0][0]) == text


def nudge(weights: Path, amount: float) -> None:
    """Change one tensor of a file, and leave all else as it is."""
    tensors = load_file(weights)
    name = next(name for name in sorted(tensors) if "up_proj" in name)
    tensors[name] = tensors[name] + amount
    save_file(tensors, weights, metadata={"format": "pt"})


def test_weights_that_change_on_the_way_are_seen(decoder: RunDirectory, tmp_path: Path):
    delivery = delivery_of(decoder, tmp_path / "out")
    delivery.write()
    nudge(tmp_path / "out" / WEIGHTS, 1e-5)
    with pytest.raises(StepFailed, match=r"^OUT: row 1: its logits differ by .* must be equal"):
        delivery.check()
    nudge(tmp_path / "out" / WEIGHTS, 1.0)
    with pytest.raises(StepFailed, match=r"^OUT: its log-probabilities differ by .* is allowed"):
        delivery.check()


def test_a_tokenizer_that_changes_on_the_way_is_seen(decoder: RunDirectory, tmp_path: Path):
    delivery = delivery_of(decoder, tmp_path / "out")
    delivery.write()
    tree = read_json(tmp_path / "out" / "tokenizer.json")
    tree["model"]["merges"] = tree["model"]["merges"][:-1]
    write_json(tmp_path / "out" / "tokenizer.json", tree)
    with pytest.raises(StepFailed, match="its tokenizer gives other ids"):
        delivery.check()


def test_tokens_that_are_misnamed_for_ctranslate2_are_seen(decoder: RunDirectory, tmp_path: Path):
    pytest.importorskip("ctranslate2")
    delivery = delivery_of(decoder, tmp_path / "out", format="ctranslate2", quantization="float32")
    delivery.write()
    names = read_json(tmp_path / "out" / "vocabulary.json")
    write_json(tmp_path / "out" / "vocabulary.json", [*names[:4], *reversed(names[4:])])
    with pytest.raises(StepFailed, match="log-probabilities differ"):
        delivery.check()


def test_a_damaged_stage_is_not_delivered(decoder: RunDirectory, tmp_path: Path):
    """Weights that no longer match their record; then a record that was made to match them."""
    run, out = copy(decoder, tmp_path), tmp_path / "out"
    stage = run.path("student", "gold")
    nudge(stage / "model" / WEIGHTS, 1.0)
    command = ["deliver", str(run.root), str(out)]
    failed = CliRunner().invoke(app, command).exception
    assert isinstance(failed, SeqkdError)
    assert str(failed).endswith(f"{WEIGHTS}: does not match its SHA-256")
    record = read_json(stage / "stage.json")
    for file in record["files"]:
        file["sha256"] = file_digest(run.path(file["path"]))
    write_json(stage / "stage.json", record)
    with pytest.raises(StepFailed, match="it decodes other tokens than the run, from token 0"):
        delivered(run, tmp_path / "in-process")
    assert not out.exists()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_stage_that_its_manifest_no_longer_means_is_not_trained(
    decoder: RunDirectory, tmp_path: Path
):
    run = copy(decoder, tmp_path)
    path = run.path("manifest.yaml")
    path.write_text(path.read_text().replace("learning_rate: 0.01", "learning_rate: 0.02"))
    with pytest.raises(RunError, match="is not trained as its manifest says: seqkd train first"):
        delivered(run, tmp_path / "out")


def test_predictions_that_are_damaged_are_seen(decoder: RunDirectory, tmp_path: Path):
    run = copy(decoder, tmp_path)
    with run.path("predictions", "student-test.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DamagedFile, match=r"student-test.parquet: does not match"):
        delivered(run, tmp_path / "out")


@pytest.mark.parametrize(
    ("generate", "told"),
    [
        ({}, {"num_beams": 1, "max_new_tokens": 256, "stop_strings": None}),
        ({"max_new_tokens": {"ratio": 2, "cap": 80}, "stop": ["\n"]}, {"max_new_tokens": 80}),
        ({"stop": ["\n"]}, {"stop_strings": ["\n"]}),
        ({"stop_token_ids": [7, 2]}, {"eos_token_id": [2, 7]}),
        ({"repetition_penalty": 1.2, "no_repeat_ngram_size": 3}, {"no_repeat_ngram_size": 3}),
        (
            {"decoding": "beam", "beam_width": 5, "length_penalty": 0.6, "early_stopping": True},
            {"num_beams": 5, "length_penalty": 0.6, "early_stopping": True, "do_sample": False},
        ),
    ],
)
def test_a_decoding_as_transformers_keeps_it(
    generate: dict[str, Any], told: dict[str, Any], tiny_llama: Path, tmp_path: Path
):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    config = generation_config(model, Generate(**generate), None)
    config.save_pretrained(tmp_path)
    kept = GenerationConfig.from_pretrained(tmp_path)
    assert {key: getattr(kept, key) for key in told} == told


def test_a_first_token_is_told_of_encoder_decoders_alone(tiny_llama: Path, tiny_t5: Path):
    from transformers import AutoModelForSeq2SeqLM

    generate = Generate(first_token="<sep>")
    decoder = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert generation_config(decoder, generate, 3).forced_bos_token_id is None
    seq2seq = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5)
    assert generation_config(seq2seq, generate, 3).forced_bos_token_id == 3


@pytest.mark.parametrize(
    ("target", "cut", "told", "at"),
    [
        ([5, 6, 2], False, [5, 6, 2], None),
        ([5, 6, 2], False, [5, 7, 2], 1),
        ([5, 6, 2], False, [5, 6], 2),
        ([5, 6], True, [5, 6, 8, 2], None),  # its limit ended it
        ([5, 6], True, [5, 8, 6], 1),
        ([5, 6], True, [5], 1),
        ([], True, [5, 6], None),
    ],
)
def test_where_two_targets_part(target: list[int], cut: bool, told: list[int], at: int | None):
    assert _parting(Decoded("s", [1], target, cut), told) == at


def test_likeness_is_told_in_full():
    assert Likeness(0.1, 3, 0.5, 0.2, 4, 2).as_record() == {
        "tolerance": 0.1,
        "positions": 3,
        "largest": 0.5,
        "mean": 0.2,
        "decoded": 4,
        "same": 2,
    }


@pytest.mark.parametrize(
    ("order", "line"),
    [
        (Order("hff"), "--format: 'hff': is not known: did you mean 'hf'?"),
        (Order(dtype="bfloat"), "--dtype: 'bfloat': is not known: did you mean 'bfloat16'?"),
        (
            Order("ctranslate2", quantization="int9"),
            "--quantization: 'int9': is not known: did you mean 'int8'?",
        ),
        (
            Order(quantization="int8"),
            "--quantization: 'int8': is of --format ctranslate2: take --dtype, or that format",
        ),
        (
            Order("ctranslate2", dtype="float16"),
            "--dtype: 'float16': is of --format hf: take --quantization",
        ),
    ],
)
def test_orders_that_are_none(order: Order, line: str):
    with pytest.raises(RunError) as error:
        order.require_sense()
    assert str(error.value) == line


def test_the_tokenizer_of_a_delivery_is_loaded_like_any(folder: Path):
    assert load_tokenizer(str(folder)).eos_token_id == 2
