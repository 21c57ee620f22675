"""The model card without a model: what its front matter says, and that its code is Python."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
from ruamel.yaml import YAML

from factory.cards.model import front_matter, render
from factory.files import read_json, write_json
from factory.manifest import Manifest
from tests.runs import MANIFEST

MODEL: dict[str, Any] = {
    "format": "hf",
    "run": "hand",
    "stage": "gold",
    "parameters": 2000,
    "encoder_decoder": False,
    "prompt": {"template": "<s>{source}<sep>"},
    "decoding": {"decoding": "greedy", "max_new_tokens": 16},
    "generation": {"ends": ["</s>"], "forced": None, "limit": 16, "beams": 1},
    "tokenizer": "print",
    "check": {
        "tolerance": 0.1,
        "positions": 1234,
        "largest": 0.03,
        "mean": 0.007,
        "decoded": 16,
        "same": 15,
        "evaluated": True,
    },
}
CHAT = {"chat": [{"role": "user", "content": 'Say {source} as {manner}: "it\'s"'}]}
STUDENT = {"init": {"from_teacher": {"layers": 1}}}


def stages_done(run) -> None:
    """The keys of a stage's record that the trainer writes and a run made by hand lacks."""
    for stage in ("pseudolabel", "gold"):
        path = run.path("student", stage, "stage.json")
        facts = {"scores": [40.0, 41.5], "metric": "chrf", "best": 2, "best_step": 7}
        write_json(path, read_json(path) | facts)


@pytest.mark.parametrize("form", ["hf", "ctranslate2"])
@pytest.mark.parametrize("encoder_decoder", [True, False])
@pytest.mark.parametrize(
    "prompt",
    [
        {"template": 'It\'s "{source}"\n{manner}\\'},
        CHAT | {"chat_options": {"enable_thinking": False}},
        {"messages": "turns", "system": "Be {manner}."},
    ],
)
def test_the_code_is_python(finished, prompt: dict[str, Any], encoder_decoder: bool, form: str):
    stages_done(finished)
    decoding = MODEL["decoding"] | {"first_token": "<fr>", "stop": ["\n"]}
    generation = MODEL["generation"] | {"forced": "<fr>" if encoder_decoder else None}
    model = MODEL | {"format": form, "prompt": prompt, "encoder_decoder": encoder_decoder}
    text = render(finished, model | {"decoding": decoding, "generation": generation})
    [code] = re.findall(r"```python\n(.*?)```", text, re.S)
    ast.parse(code)
    assert ('prompt += "<fr>"' in code) == (not encoder_decoder)
    assert ("tokenizer=tokenizer" in code) == (form == "hf")
    if "template" in prompt:
        [line] = [line for line in code.splitlines() if line.startswith('prompt = "')]
        assert ast.literal_eval(line.removeprefix("prompt = ")) == prompt["template"]


def test_scores_and_stages_of_a_small_run(finished):
    stages_done(finished)
    text = render(finished, MODEL)
    assert "| test | bleu | student | 21.50 | – | by\\|hand |" in text
    assert "| pseudolabel | pseudolabels | 1 ce | 17 | – | 7 | chrf 41.50 |" in text
    assert "differ by 0.007 nats on average and 0.03 at most" in text
    assert "15 were decoded to the same tokens as in the evaluation, the others parting" in text
    _, matter, _ = text.split("---\n", 2)
    [index] = YAML(typ="safe", pure=True).load(matter)["model-index"]
    [metric] = index["results"][0]["metrics"]
    assert (metric["type"], metric["value"]) == ("bleu", 21.5)
    assert metric["args"] == {"signature": "by|hand"}


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        (
            {},
            {"license": "unknown", "pipeline_tag": "text-generation", "base_model": "some/teacher"},
        ),
        ({"languages": ["en", "fr"]}, {"pipeline_tag": "translation", "language": ["en", "fr"]}),
        ({"student": {"init": {"model": "a/start"}}}, {"base_model": "a/start"}),
        (
            {"teacher": {"model": "/models/own"}},
            {"base_model": None, "library_name": "transformers"},
        ),
    ],
)
def test_front_matter(sections: dict[str, Any], told: dict[str, Any]):
    manifest = Manifest.model_validate(MANIFEST | {"student": STUDENT} | sections)
    matter = front_matter(manifest, MODEL, [])
    assert {key: matter.get(key) for key in told} == told
    assert "model-index" not in matter
