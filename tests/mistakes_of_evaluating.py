"""What users get wrong in `evaluate`: the mistake, and what the one line must say of it."""

from __future__ import annotations

from tests.mistakes import Edits

METRICS = "evaluate.metrics"
COMMAND = {"command": "echo 1"}


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
}
