"""What users get wrong about stages, as a literal table like those of `tests.mistakes`."""

from __future__ import annotations

from tests.mistakes import REMOVED, STAGE, STAGES, Edits

DEEPSPEED = "student.deepspeed"

STAGINGS: dict[str, tuple[Edits, str, list[str]]] = {
    "two lengths of a stage": (
        {STAGES: [STAGE | {"epochs": 2, "steps": 100}]},
        "manifest.yaml student.stages.0:",
        ["takes one length, and epochs and steps are given: leave one"],
    ),
    "a stage of no steps": (
        {STAGES: [STAGE | {"steps": 0}]},
        "manifest.yaml student.stages.0.steps: 0:",
        ["greater than or equal to 1"],
    ),
    "a broken pattern of names": (
        {STAGES: [STAGE | {"freeze": ["layers.("]}]},
        "manifest.yaml student.stages.0.freeze.0: 'layers.(':",
        ["is no regular expression"],
    ),
    "patience without validation": (
        {STAGES: [STAGE | {"patience": 2}], "data.validation": REMOVED},
        "manifest.yaml",
        ["student.stages.gold.patience needs validation: give data.validation with its target"],
    ),
    "a mixture with a weight of nothing": (
        {STAGES: [STAGE | {"data": {"pseudolabels": 0.7, "gold": 0}}]},
        "manifest.yaml student.stages.0.data.gold: 0:",
        ["greater than 0"],
    ),
    "a mixture of nothing": (
        {STAGES: [STAGE | {"data": {}}]},
        "manifest.yaml student.stages.0.data:",
        ["names no selection: give pseudolabels, gold or SQL, each with its weight"],
    ),
    "a mixture with pseudolabels and no teacher": (
        {
            "teacher": REMOVED,
            "student.init": {"model": "m"},
            STAGES: [STAGE | {"data": {"pseudolabels": 1, "gold": 1}}],
        },
        "manifest.yaml:",
        ["student.stages.gold: pseudolabels need a teacher"],
    ),
    "a batch size for DeepSpeed": (
        {DEEPSPEED: {"config": {"train_batch_size": 8}}},
        "manifest.yaml student.deepspeed.config:",
        ["train_batch_size: a stage's batch_tokens and micro_batch_tokens decide it: remove it"],
    ),
    "a ZeRO stage in two places": (
        {DEEPSPEED: {"config": {"zero_optimization": {"stage": 2}}}},
        "manifest.yaml student.deepspeed.config:",
        ["zero_optimization.stage: student.deepspeed.zero_stage decides it: remove it"],
    ),
    "an optimiser for DeepSpeed": (
        {DEEPSPEED: {"config": {"optimizer": {"type": "Lamb"}}}},
        "manifest.yaml student.deepspeed.config:",
        ["optimizer: a stage's learning_rate, weight_decay, betas and epsilon decide it"],
    ),
    "a section of DeepSpeed's that is none": (
        {DEEPSPEED: {"config": {"zero_optimization": 3}}},
        "manifest.yaml student.deepspeed.config:",
        ["zero_optimization: is a section: give its keys"],
    ),
    "parameters off a ZeRO stage that holds them whole": (
        {DEEPSPEED: {"offload": "parameters", "zero_stage": 2}},
        "manifest.yaml student.deepspeed:",
        ["offload: parameters needs zero_stage 3, and it is 2"],
    ),
    "an optimiser off the stage that has none": (
        {DEEPSPEED: {"offload": "optimizer", "zero_stage": 0}},
        "manifest.yaml student.deepspeed:",
        ["offload: optimizer needs a zero_stage of 1 or more, and it is 0"],
    ),
    "a hostfile that is not there": (
        {DEEPSPEED: {"hostfile": "hosts"}},
        "student.deepspeed.hostfile: '{cwd}/hosts':",
        ["cannot be read: No such file or directory"],
    ),
    "a decay of one": (
        {STAGES: [STAGE | {"betas": [0.9, 1.0]}]},
        "manifest.yaml student.stages.0.betas.1: 1.0:",
        ["less than 1"],
    ),
}
