"""What a student takes over of teachers of several kinds, to the bit, and what it then computes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from factory.errors import ManifestError
from factory.manifest import Manifest
from factory.prompting.tokenizing import load_tokenizer, target_start
from factory.training import FromTeacher, TrainTokenizer
from student.copying import copied_parameters
from student.initialise import Initialised, count_parameters, initialise, load
from student.tokenizers import train_tokenizer
from tests.student.tiny import pairs

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIDES = {
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "d_model": 32,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": 2,
}
T5 = {"num_layers": 3, "num_decoder_layers": 3, "num_heads": 4, "d_model": 32, "d_kv": 8}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = {"n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": 64}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, LLAMA),
    "gpt2": (GPT2LMHeadModel, GPT2Config, GPT2),
    "t5": (T5ForConditionalGeneration, T5Config, {**T5, "d_ff": 24, "decoder_start_token_id": 0}),
    "marian": (MarianMTModel, MarianConfig, SIDES),
    "bart": (BartForConditionalGeneration, BartConfig, SIDES),
}
# What stands before a layer's number: of a decoder, or of the only stack; then of an encoder.
STACKS = {
    "llama": ("model.layers.", None),
    "gpt2": ("transformer.h.", None),
    "t5": ("decoder.block.", "encoder.block."),
    "marian": ("model.decoder.layers.", "model.encoder.layers."),
    "bart": ("model.decoder.layers.", "model.encoder.layers."),
}
ENCODED = ["t5", "marian", "bart"]
NARROWER = {
    "llama": {"hidden_size": 16, "intermediate_size": 40, "num_attention_heads": 2}
    | {"num_key_value_heads": 1},
    "gpt2": {"hidden_size": 16, "n_head": 2},
    "t5": {"d_model": 16, "num_heads": 2},
    "marian": {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
    "bart": {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An untrained teacher of every kind, all with one tokenizer."""
    root = tmp_path_factory.mktemp("kinds")
    texts = [text for pair in pairs() for text in pair]
    tokenizer = train_tokenizer(texts, TrainTokenizer(vocab_size=320))
    for name, (model, config, fields) in KINDS.items():
        torch.manual_seed(3)
        made = model(config(vocab_size=len(tokenizer), **fields, **IDS))
        for parameter in made.parameters():  # biases and norms of no interest would be all alike
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        made.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in KINDS}


def begin(
    teacher: Path, from_teacher: dict[str, Any], tokenizer: PreTrainedTokenizerFast | None = None
) -> Initialised:
    student = {
        "init": {"from_teacher": from_teacher},
        "stages": [{"name": "gold", "data": "gold"}],
    }
    sections = {"teacher": {"model": str(teacher)}, "student": student}
    manifest = Manifest.model_validate({"name": "x", "data": {"train": {"path": "x"}}, **sections})
    assert manifest.student
    return initialise(manifest, manifest.student, tokenizer or load_tokenizer(str(teacher)))


def outputs(model: Any) -> torch.Tensor:
    ids = torch.tensor([[1, 5, 9, 3, 200, 2]])
    more = {"decoder_input_ids": ids[:, :4]} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(ids, **more).logits
    return logits


def places(begun: Initialised) -> dict[str, str]:
    """Where each of a student's tensors comes from."""
    return {name: copy.teacher for name, copy in begun.copies.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_of_all_layers_computes_what_its_teacher_computes(
    teachers: dict[str, Path], kind: str
):
    begun = begin(teachers[kind], {"layers": 3})
    teacher = load(str(teachers[kind]))
    assert torch.equal(outputs(begun.model), outputs(teacher))
    assert begun.copied_as_record()["new"] == []
    assert copied_parameters(begun.model, begun.copies) == count_parameters(teacher)


@pytest.mark.parametrize("kind", KINDS)
def test_chosen_layers_are_the_teachers_to_the_bit(teachers: dict[str, Path], kind: str):
    begun = begin(teachers[kind], {"layers": [1, 2]})
    theirs, ours = load(str(teachers[kind])).state_dict(), begun.model.state_dict()
    stack, encoder = STACKS[kind]
    assert begun.copied_layers == (1, 2)
    assert begun.copied_encoder_layers == ((0, 1, 2) if encoder else ())
    numbered = {name for name in ours if name.startswith(stack)}
    assert {name.removeprefix(stack).split(".")[0] for name in numbered} == {"0", "1"}
    for name in ours:
        if not name.startswith(stack) or "relative_attention_bias" in name:
            wanted = name
        else:
            number, rest = name.removeprefix(stack).split(".", 1)
            wanted = f"{stack}{int(number) + 1}.{rest}"
        assert places(begun)[name] == wanted
        assert torch.equal(ours[name], theirs[wanted]), name


@pytest.mark.parametrize("kind", ENCODED)
def test_an_encoder_is_cut_where_it_is_asked_for(teachers: dict[str, Path], kind: str):
    begun = begin(teachers[kind], {"layers": 1, "encoder_layers": [2]})
    theirs, ours = load(str(teachers[kind])).state_dict(), begun.model.state_dict()
    stack = STACKS[kind][1]
    assert (begun.copied_layers, begun.copied_encoder_layers) == ((0,), (2,))
    names = [n for n in ours if n.startswith(f"{stack}0.") and "relative_attention" not in n]
    assert names
    for name in names:
        assert torch.equal(ours[name], theirs[name.replace(f"{stack}0.", f"{stack}2.")])
    assert outputs(begun.model).isfinite().all()


def test_an_encoder_alone_may_be_cut(teachers: dict[str, Path]):
    begun = begin(teachers["t5"], {"encoder_layers": 2})
    assert (begun.copied_layers, begun.copied_encoder_layers) == ((0, 1, 2), (0, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_narrower_student_takes_the_leading_part(teachers: dict[str, Path], kind: str):
    begun = begin(teachers[kind], {"layers": 2, "config": NARROWER[kind]})
    theirs, ours = load(str(teachers[kind])).state_dict(), begun.model.state_dict()
    narrower = 0
    for name, copy in begun.copies.items():
        if copy.parts > 1:
            continue
        leading = tuple(slice(size) for size in copy.shape)
        assert list(ours[name].shape) == copy.shape
        assert torch.equal(ours[name], theirs[copy.teacher][leading]), name
        narrower += ours[name].shape != theirs[copy.teacher].shape
    assert narrower > 10
    assert outputs(begun.model).isfinite().all()
    assert copied_parameters(begun.model, begun.copies) <= count_parameters(begun.model)


def test_query_key_and_value_side_by_side_are_cut_each(teachers: dict[str, Path]):
    begun = begin(teachers["gpt2"], {"layers": 1, "config": NARROWER["gpt2"]})
    name = "transformer.h.0.attn.c_attn.weight"
    theirs, ours = load(str(teachers["gpt2"])).state_dict()[name], begun.model.state_dict()[name]
    assert (ours.shape, theirs.shape) == ((16, 48), (32, 96))
    for block in range(3):
        cut = theirs[:16, 32 * block : 32 * block + 16]
        assert torch.equal(ours[:, 16 * block : 16 * block + 16], cut)
    assert (begun.copies[name].shape, begun.copies[name].parts) == ([16, 16], 3)


def test_computed_positions_are_not_cut(teachers: dict[str, Path]):
    begun = begin(teachers["marian"], {"layers": 1, "config": NARROWER["marian"]})
    name = "model.encoder.embed_positions.weight"
    assert name not in begun.copies
    positions = begun.model.state_dict()[name]
    assert positions[1, :8].tolist() == pytest.approx(
        [float(torch.sin(torch.tensor(10000.0 ** (-i / 8)))) for i in range(8)], abs=1e-5
    )


@pytest.mark.parametrize("kind", ["llama", "t5", "bart"])
def test_with_another_tokenizer_the_shared_tokens_are_taken(teachers: dict[str, Path], kind: str):
    tokenizer = train_tokenizer((source for source, _ in pairs()), TrainTokenizer(vocab_size=300))
    begun = begin(teachers[kind], {"layers": 2}, tokenizer)
    teacher = load(str(teachers[kind]))
    old, new = load_tokenizer(str(teachers[kind])).get_vocab(), tokenizer.get_vocab()
    shared = sorted(old.keys() & new.keys())
    assert begun.model.config.vocab_size == len(tokenizer) != len(old)
    assert any(old[token] != new[token] for token in shared)
    for ours, theirs in (
        (begun.model.get_input_embeddings(), teacher.get_input_embeddings()),
        (begun.model.get_output_embeddings(), teacher.get_output_embeddings()),
    ):
        for token in shared:
            assert torch.equal(ours.weight[new[token]], theirs.weight[old[token]])
    rows = [copy for copy in begun.copies.values() if copy.rows]
    assert rows
    assert all(copy.shape[0] == len(shared) for copy in rows)
    assert outputs(begun.model).shape[-1] == len(tokenizer)


def test_control_tokens_follow_what_they_do(teachers: dict[str, Path]):
    tokenizer = train_tokenizer((source for source, _ in pairs()), TrainTokenizer(vocab_size=300))
    tokenizer.eos_token = "<sep>"
    begun = begin(teachers["bart"], {"layers": 1}, tokenizer)
    config, told = begun.model.config, begun.model.generation_config
    assert (config.eos_token_id, config.decoder_start_token_id) == (3, 0)
    assert (told.eos_token_id, told.forced_eos_token_id, told.decoder_start_token_id) == (3, 3, 0)
    end = load(str(teachers["bart"])).get_input_embeddings().weight[2]
    assert torch.equal(begun.model.get_input_embeddings().weight[3], end)


def test_the_record_tells_every_tensor(teachers: dict[str, Path]):
    begun = begin(teachers["t5"], {"layers": [0, 2], "config": {"d_ff": 16}})
    record = begun.copied_as_record()
    assert (record["layers"], record["encoder_layers"]) == ([0, 2], [0, 1, 2])
    assert record["tensors"]["decoder.block.1.layer.2.DenseReluDense.wi.weight"] == {
        "teacher": "decoder.block.2.layer.2.DenseReluDense.wi.weight",
        "shape": [16, 32],
        "rows": False,
        "parts": 1,
    }
    assert record["tensors"].keys() | set(record["new"]) == begun.model.state_dict().keys()


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"layers": 4}, "layers: 4: the teacher has 3 layers: take at most as many"),
    ("llama", {"layers": [0, 3]}, "layers: 3: is no layer of the teacher's 3: they are numbered"),
    ("llama", {"encoder_layers": 1}, "encoder_layers: 1: a llama has no encoder: remove it"),
    ("t5", {"encoder_layers": 4}, "encoder_layers: 4: the teacher has 3 layers"),
    ("gpt2", {"config": {"model_type": "llama"}}, "'llama': the teacher is a gpt2"),
    ("gpt2", {"config": {"n_layer": 2}}, "config.n_layer: 2: is what from_teacher.layers says"),
    ("llama", {"config": {"hiden_size": 8}}, "unknown key: did you mean 'hidden_size'?"),
    ("gpt2", {"config": {"n_embd": 16}}, "its heads would be 4 wide, and the teacher's are 8"),
    (
        "llama",
        {"config": {"num_attention_heads": 2}},
        "its heads would be 8 wide, and the teacher's are 8 wide, 2 to a key",
    ),
    ("llama", {"config": {"hidden_size": "wide"}}, "from_teacher.config: {'hidden_size': 'wide'}"),
]


@pytest.mark.parametrize(("kind", "asked", "message"), MISTAKES)
def test_mistakes_are_one_line(
    teachers: dict[str, Path], kind: str, asked: dict[str, Any], message: str
):
    with pytest.raises(ManifestError) as caught:
        begin(teachers[kind], asked)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "start"), [("bart", 3), ("t5", None), ("llama", None)])
def test_what_a_checkpoint_forces_first_begins_a_target(
    teachers: dict[str, Path], tmp_path: Path, kind: str, start: int | None
):
    folder = Path(shutil.copytree(teachers[kind], tmp_path / kind))
    told = GenerationConfig(forced_bos_token_id=start if kind == "bart" else None)
    told.save_pretrained(folder)
    tokenizer = load_tokenizer(str(folder))
    assert target_start(tokenizer, None, str(folder)) == start
    assert target_start(tokenizer, "<sep>", str(folder)) == tokenizer.sep_token_id
    (folder / "generation_config.json").unlink()
    assert target_start(tokenizer, None, str(folder)) is None


def test_a_student_goes_on_standing_under_keys_that_came_later():
    told = [
        FromTeacher.model_validate(tree).model_dump(mode="json")
        for tree in ({"layers": 2}, {"layers": [0, 2], "config": {"d_ff": 8}})
    ]
    assert told == [{"layers": 2}, {"layers": [0, 2], "config": {"d_ff": 8}}]
