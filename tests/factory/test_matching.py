"""Which layers are matched, told by configurations; and what of it is refused by `check`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    T5Config,
)

from factory.architecture import model_class
from factory.errors import ManifestError
from factory.matching import layers_of, matched_layers
from factory.training import Init, Stage

ANEW = Init.model_validate({"model": "m"})


def llama(layers: int, **fields: Any) -> LlamaConfig:
    return LlamaConfig(num_hidden_layers=layers, **fields)


def stage(layers: Any = None) -> Stage:
    objective = {"hidden": 1.0} | ({} if layers is None else {"hidden_layers": layers})
    return Stage.model_validate({"name": "s", "data": "gold", "objective": objective})


@pytest.mark.parametrize(
    ("ours", "theirs", "layers"),
    [
        (1, 6, [5]),  # copied from the first, and yet the last is what the head reads
        (2, 12, [0, 11]),
        (3, 12, [0, 6, 11]),
        (6, 12, [0, 2, 4, 7, 9, 11]),
        (4, 6, [0, 1, 3, 5]),
        (3, 3, [0, 1, 2]),
        (3, 9, [0, 4, 8]),
    ],
)
def test_layers_are_matched_as_they_are_copied_and_the_last_with_the_last(ours, theirs, layers):
    told = matched_layers(stage(), ANEW, llama(ours), llama(theirs))
    assert told == dict(enumerate(layers))


def test_layers_that_were_chosen_are_matched_with_their_own():
    init = Init.model_validate({"from_teacher": {"layers": [1, 2, 4]}})
    assert matched_layers(stage(), init, llama(3), llama(6)) == {0: 1, 1: 2, 2: 5}
    whole = Init.model_validate({"from_teacher": {"config": {"hidden_size": 8}}})
    assert matched_layers(stage(), whole, llama(2), llama(2)) == {0: 0, 1: 1}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({1: 5}, {1: 5}),
        ({"2": 5, "0": 0}, {0: 0, 2: 5}),  # keys as JSON has them
        ({0: 3, 1: 3}, {0: 3, 1: 3}),
        ([1, 3, 5], {0: 1, 1: 3, 2: 5}),
    ],
)
def test_layers_are_matched_as_the_stage_says(asked, told):
    assert matched_layers(stage(asked), ANEW, llama(3), llama(6)) == told


def test_of_an_encoder_decoder_its_decoders_layers_are_meant():
    student = T5Config(num_layers=6, num_decoder_layers=1, decoder_start_token_id=0)
    teacher = T5Config(num_layers=2, num_decoder_layers=4, decoder_start_token_id=0)
    assert matched_layers(stage(), ANEW, student, teacher) == {0: 3}


@pytest.mark.parametrize(
    ("asked", "student", "teacher", "message"),
    [
        (None, llama(3), llama(2), "hidden_layers: the student has 3 layers and the teacher 2"),
        ({3: 0}, llama(3), llama(6), "hidden_layers: 3: is no layer of the student's 3"),
        ({0: 6}, llama(3), llama(6), "hidden_layers: 6: is no layer of the teacher's 6"),
        ([0, 5], llama(3), llama(6), "names 2 layers for the student's 3: name pairs"),
        (None, llama(3), T5Config(), "hidden: 1.0: the teacher has an encoder and the student"),
        (None, T5Config(), llama(3), "hidden: 1.0: the student has an encoder and the teacher"),
        (
            None,
            T5Config(decoder_start_token_id=0),
            T5Config(decoder_start_token_id=2),
            "the student's decoder_start_token_id is 0, the teacher's 2: make them one",
        ),
    ],
)
def test_what_cannot_be_matched_is_refused(asked, student, teacher, message: str):
    with pytest.raises(ManifestError) as error:
        matched_layers(stage(asked), ANEW, student, teacher)
    assert message in str(error.value)
    assert str(error.value).startswith("student.stages.s.objective.hidden")


WIDTHS = {"d_model": 8, "decoder_layers": 3, "encoder_layers": 3, "max_position_embeddings": 16}
SMALL = [
    llama(2, hidden_size=8, intermediate_size=8, num_attention_heads=2),
    GPT2Config(n_layer=2, n_embd=8, n_head=2),
    OPTConfig(num_hidden_layers=2, hidden_size=8, ffn_dim=8, num_attention_heads=2),
    T5Config(num_layers=3, num_decoder_layers=3, d_model=8, num_heads=2),
    T5Config(num_layers=1, num_decoder_layers=2, d_model=8, num_heads=2),
    BartConfig(**WIDTHS, encoder_attention_heads=2, decoder_attention_heads=2),
]


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.model_type)
def test_the_list_of_layers_is_found(config: Any):
    """T5's blocks hold lists of their own, and stand in an encoder of as many layers too."""
    with torch.device("meta"):
        model = model_class(config).from_config(config)
    found = layers_of(model, config)
    inner = model.get_decoder() if config.is_encoder_decoder else model.base_model
    inner = getattr(inner, "decoder", inner)
    wanted = next(m for m in inner.children() if isinstance(m, torch.nn.ModuleList))
    assert found is wanted


def test_models_that_do_not_tell_their_layers_are_told_apart():
    config = llama(2, hidden_size=8, intermediate_size=8, num_attention_heads=2)
    assert layers_of(torch.nn.Linear(2, 2), config) is None
    twice = torch.nn.ModuleDict(
        {name: torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(2)) for name in ("h", "x")}
    )
    assert layers_of(twice, config) is twice["h"]
    twice["layers"] = twice["x"]
    twice["x"] = twice["h"]
    assert layers_of(twice, config) is None
