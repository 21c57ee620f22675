"""Which layers a student takes over, and that it then computes what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from factory.architecture import spaced_layers
from factory.errors import ManifestError, RunError
from factory.manifest import Manifest
from factory.prompting.tokenizing import load_tokenizer
from student.initialise import count_parameters, initialise, load, parameters_of
from tests.student.tiny import save_teacher

TABLE = [  # methods.md, section 3
    (12, 1, [0]),
    (12, 2, [0, 6]),
    (12, 3, [0, 6, 11]),
    (12, 4, [0, 4, 8, 11]),
    (12, 6, [0, 2, 4, 7, 9, 11]),
    (12, 9, [0, 1, 2, 4, 5, 7, 9, 10, 11]),
    (12, 12, list(range(12))),
    (6, 1, [0]),
    (6, 2, [0, 5]),
    (6, 3, [0, 2, 5]),
    (6, 4, [0, 1, 3, 5]),
    (16, 2, [0, 15]),
    (16, 3, [0, 8, 15]),
    (16, 4, [0, 5, 10, 15]),
    (16, 6, [0, 3, 6, 9, 12, 15]),
    (16, 8, [0, 2, 4, 6, 8, 10, 12, 15]),
    (24, 3, [0, 12, 23]),
    (24, 1, [0]),
    (5, 2, [0, 4]),
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("initialise") / "teacher")


def manifest(teacher: Path | None, init: dict[str, Any]) -> Manifest:
    tree: dict[str, Any] = {"name": "x", "data": {"train": {"path": "x"}}}
    tree["student"] = {"init": init, "stages": [{"name": "gold", "data": "gold"}]}
    return Manifest.model_validate(tree | ({"teacher": {"model": str(teacher)}} if teacher else {}))


def begin(teacher: Path, init: dict[str, Any]) -> Any:
    read = manifest(teacher, init)
    assert read.student
    return initialise(read, read.student, load_tokenizer(str(teacher)))


@pytest.mark.parametrize(("layers", "kept", "copied"), TABLE)
def test_spaced_layers(layers, kept, copied):
    assert list(spaced_layers(layers, kept)) == copied


def test_more_layers_than_the_teacher_has_are_refused():
    with pytest.raises(ManifestError, match=r"from_teacher.layers: 7: the teacher has 6 layers"):
        spaced_layers(6, 7)


def test_all_layers_make_the_teacher_itself(teacher: Path):
    begun = begin(teacher, {"from_teacher": {"layers": 3}})
    ids = torch.tensor([[1, 5, 9, 3]])
    torch.testing.assert_close(begun.model(ids).logits, load(str(teacher))(ids).logits)


def test_spaced_layers_are_copied_under_new_numbers(teacher: Path):
    begun = begin(teacher, {"from_teacher": {"layers": 2}})
    whole, cut = load(str(teacher)).state_dict(), begun.model.state_dict()
    assert begun.copied_layers == (0, 2)
    assert begun.model.config.num_hidden_layers == 2
    name = "self_attn.q_proj.weight"
    assert torch.equal(cut[f"model.layers.1.{name}"], whole[f"model.layers.2.{name}"])
    for kept in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert torch.equal(cut[kept], whole[kept])


def test_an_encoder_stays_whole(tmp_path: Path, teacher: Path):
    config = T5Config(
        vocab_size=320, d_model=16, d_kv=8, d_ff=16, num_layers=3, num_heads=2, num_decoder_layers=3
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    load_tokenizer(str(teacher)).save_pretrained(tmp_path)
    begun = begin(tmp_path, {"from_teacher": {"layers": 2}})
    assert begun.model.config.num_layers == 3
    assert begun.model.config.num_decoder_layers == 2
    assert len(begun.model.encoder.block) == 3
    whole = load(str(tmp_path)).state_dict()
    name = "layer.1.EncDecAttention.q.weight"
    cut = begun.model.state_dict()[f"decoder.block.1.{name}"]
    assert torch.equal(cut, whole[f"decoder.block.2.{name}"])


LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def test_a_configuration_takes_its_ids_from_the_tokenizer_and_is_seeded(teacher: Path):
    first, second = (begin(teacher, {"config": LLAMA}).model for _ in range(2))
    assert first.config.vocab_size == len(load_tokenizer(str(teacher)))
    assert (first.config.pad_token_id, first.config.eos_token_id) == (0, 2)
    assert first.generation_config.eos_token_id == 2
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_checkpoint_is_taken_as_it_is(teacher: Path):
    begun = begin(teacher, {"model": str(teacher)})
    assert begun.copied_layers == ()
    assert count_parameters(begun.model) == parameters_of(str(teacher), None)


MISTAKES = [
    ({"config": {**LLAMA, "model_type": "lama"}}, "student.init.config: 'lama': is refused"),
    ({"config": {**LLAMA, "vocab_size": 9}}, "the model knows 9 tokens, the tokenizer"),
    ({"model": "/nowhere/model"}, "'/nowhere/model': cannot be loaded"),
]


@pytest.mark.parametrize(("init", "message"), MISTAKES)
def test_mistakes_are_one_line(teacher: Path, init: dict[str, Any], message: str):
    with pytest.raises((ManifestError, RunError)) as caught:
        begin(teacher, init)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
