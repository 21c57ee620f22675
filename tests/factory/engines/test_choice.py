"""Which engine `auto` takes, and why another cannot be taken."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig, T5Config

from factory.decoding import Generate
from factory.engines import ABILITIES
from factory.engines.choice import Kind, choose, installed, obstacle

LLAMA, T5 = Kind("llama", False, 64), Kind("t5", True, 64)
ALL = tuple(ABILITIES)
BEAM = {"decoding": "beam"}
CUDA, TRAINING = {"cuda": True}, {"beside_training": True}

# model, decoding, sources, installed, where -> engine
CHOICES: list[tuple[Kind, dict[str, Any], int, tuple[str, ...], dict[str, bool], str]] = [
    (LLAMA, {}, 1000, ALL, {}, "ctranslate2"),
    (LLAMA, {}, 300, ALL, {}, "ctranslate2"),
    (LLAMA, {}, 299, ALL, {}, "transformers"),
    (LLAMA, BEAM, 60, ALL, {}, "ctranslate2"),
    (LLAMA, BEAM, 59, ALL, {}, "transformers"),
    (LLAMA, {}, 1000, ("vllm", "transformers"), {}, "transformers"),
    (LLAMA, {}, 1000, ALL, TRAINING, "ctranslate2"),
    (LLAMA, {}, 1000, ALL, CUDA, "vllm"),
    (LLAMA, {}, 1, ALL, CUDA, "vllm"),
    (LLAMA, {}, 1000, ALL, CUDA | TRAINING, "transformers"),
    (LLAMA, {"first_token": "x"}, 1000, ALL, {}, "transformers"),
    (LLAMA, {"stop": ["x"]}, 1000, ALL, {}, "transformers"),
    (LLAMA, {"stop": ["x"]}, 1000, ALL, CUDA, "vllm"),
    (LLAMA, BEAM | {"stop": ["x"]}, 1000, ALL, CUDA, "transformers"),
    (T5, {}, 1000, ALL, {}, "ctranslate2"),
    (T5, {"first_token": "x"}, 1000, ALL, {}, "ctranslate2"),
    (T5, {}, 1000, ("vllm", "transformers"), {}, "transformers"),
    (T5, {}, 1000, ALL, CUDA, "transformers"),
    (T5, BEAM, 1000, ALL, {}, "ctranslate2"),
    (T5, BEAM | {"repetition_penalty": 1.2}, 1000, ALL, {}, "transformers"),
    (T5, {"repetition_penalty": 1.2}, 1000, ALL, {}, "ctranslate2"),
    (Kind("gpt_neo", False, 64), {}, 1000, ALL, {}, "transformers"),
    (Kind("qwen2", False, 64), {}, 1000, ALL, {}, "transformers"),
    (Kind("llama", False, 16), {}, 1000, ALL, {}, "ctranslate2"),
]


@pytest.mark.parametrize("case", CHOICES, ids=str)
def test_auto_is_a_table(case):
    kind, asked, sources, there, where, engine = case
    told = {"cuda": False, "there": there} | where
    assert choose(kind, "float32", Generate(**asked), sources, **told) == engine


def test_auto_converts_float32_alone():
    told = {"cuda": False, "there": ALL}
    assert choose(LLAMA, "bfloat16", Generate(), 1000, **told) == "transformers"


@pytest.mark.parametrize(
    ("engine", "kind", "asked", "cuda", "reason"),
    [
        ("vllm", T5, {}, True, "is an encoder–decoder (t5)"),
        ("vllm", Kind("llama", False, 16), {}, False, "has attention heads of 16, and on a CPU"),
        ("vllm", Kind("llama", False, 16), {}, True, None),
        ("vllm", Kind("llama", False), {}, False, None),
        ("ctranslate2", LLAMA, {"decoding": "sample"}, False, "is to be decoded by sample"),
        ("ctranslate2", LLAMA, {"first_token": "x"}, False, "first_token, which there is not in"),
        ("ctranslate2", T5, {"first_token": "x"}, False, None),
        ("transformers", T5, {"stop": ["x"], "first_token": "x"}, False, None),
    ],
)
def test_what_stands_in_the_way_is_told(engine, kind, asked, cuda, reason):
    told = obstacle(engine, kind, Generate(**asked), cuda=cuda)
    assert told is None if reason is None else reason in str(told)


def test_a_configuration_tells_the_kind():
    assert Kind.of_config(LlamaConfig(hidden_size=64, num_attention_heads=2)).head_size == 32
    assert Kind.of_config(LlamaConfig()).encoder_decoder is False
    assert Kind.of_config(T5Config()).encoder_decoder
    assert Kind.of_config(T5Config()).model_type == "t5"


def test_what_is_installed_is_looked_for():
    assert "transformers" in installed() <= set(ABILITIES)
