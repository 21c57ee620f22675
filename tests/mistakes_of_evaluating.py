"""What users get wrong in `evaluate`: the mistake, and what the one line must say of it."""

from __future__ import annotations

from tests.mistakes import Edits

METRICS = "evaluate.metrics"
COMMAND = {"command": "echo 1"}
NARROW = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 2}


def metrics(*listed: object) -> Edits:
    return {"evaluate": {"metrics": list(listed)}}


# name: (edits to the manifest, what the line begins with, words it holds)
EVALUATIONS: dict[str, tuple[Edits, str, list[str]]] = {
    "unknown metric": (
        metrics("bleu", "blue"),
        f"manifest.yaml {METRICS}.1: 'blue':",
        ["'bleu', 'chrf', 'ter'"],
    ),
    "unknown key of a command": (
        metrics({"own": {"comand": "echo 1"}}),
        f"manifest.yaml {METRICS}.0.own.comand:",
        ["unknown key", "did you mean 'command'?"],
    ),
    "a metric without its command": (
        metrics({"own": {}}),
        f"manifest.yaml {METRICS}.0.own.command:",
        ["is missing: add it"],
    ),
    "no time at all": (
        metrics({"own": COMMAND | {"timeout": 0}}),
        f"manifest.yaml {METRICS}.0.own.timeout: 0:",
        ["greater than 0"],
    ),
    "a metric twice": (
        metrics("ter", "ter"),
        "manifest.yaml evaluate:",
        ["metrics holds ter twice: remove one"],
    ),
    "a command with a name of ours": (
        metrics({"ter": COMMAND}),
        "manifest.yaml evaluate:",
        ["metrics.ter is a metric of our own"],
    ),
    "a name with a blank": (
        metrics({"my own": COMMAND}),
        "manifest.yaml evaluate:",
        ["'my own' is no name"],
    ),
    "a program that is not there": (
        metrics({"own": {"command": "no-such-program -x"}}),
        f"{METRICS}.own.command: 'no-such-program -x':",
        ["there is no program 'no-such-program'", "install it, or give its path"],
    ),
    "a program beside the manifest that is not there": (
        metrics({"own": {"command": "./score"}}),
        f"{METRICS}.own.command: './score':",
        ["there is no program './score'"],
    ),
    "an engine that runs no encoder–decoder": (
        {"evaluate.engine": "vllm", "student.init": {"model": "{t5}"}},
        "evaluate.engine: 'vllm':",
        [
            "cannot decode the student: it is an encoder–decoder (t5): ",
            "set evaluate.engine to transformers or ctranslate2",
        ],
    ),
    "a student with narrow heads": (
        {"evaluate.engine": "vllm", "student.init": {"config": NARROW}},
        "evaluate.engine: 'vllm':",
        ["cannot decode the student: it has attention heads of 16", "32 wide or more"],
    ),
    "stop strings of a beam over vllm": (
        {"generate.stop": ["x"], "evaluate": {"decoding": "beam", "engine": "vllm"}},
        "evaluate.engine: 'vllm':",
        ["cannot decode the teacher: it is to be decoded with stop", "set evaluate.engine to"],
    ),
    "a width without a beam": (
        {"evaluate": {"beam_width": 8}},
        "manifest.yaml evaluate:",
        ["decoding 'greedy' ignores beam_width: remove it, or set decoding to beam"],
    ),
    "an engine that there is not": (
        {"evaluate.engine": "vlm"},
        "manifest.yaml evaluate.engine: 'vlm':",
        ["'auto', 'vllm', 'ctranslate2'"],
    ),
    "vllm beside training": (
        {"student.validate_engine": "vllm"},
        "manifest.yaml student.validate_engine: 'vllm':",
        ["'auto', 'ctranslate2' or 'transformers'"],
    ),
    "a validation without the first token": (
        {"student.validate_engine": "ctranslate2", "generate.first_token": "<sep>"},
        "student.validate_engine: 'ctranslate2':",
        ["cannot decode the student", "first_token", "set student.validate_engine to transformers"],
    ),
}
