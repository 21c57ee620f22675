"""What users get wrong about stages, as a literal table like those of `tests.mistakes`."""

from __future__ import annotations

from tests.mistakes import REMOVED, STAGE, STAGES, Edits

TRAINED = {"train": {"vocab_size": 300}}
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
    "hidden states without a teacher": (
        {
            "teacher": REMOVED,
            "student.init": {"model": "m"},
            STAGES: [STAGE | {"objective": {"hidden": 1}}],
        },
        "manifest.yaml:",
        ["student.stages.gold: hidden needs a teacher"],
    ),
    "layers for a term that is not there": (
        {STAGES: [STAGE | {"objective": {"ce": 1, "hidden_layers": {0: 1}}}]},
        "manifest.yaml student.stages.0.objective:",
        ["nothing reads hidden_layers: remove it, or weigh hidden"],
    ),
    "pairs of no layers": (
        {STAGES: [STAGE | {"objective": {"hidden": 1, "hidden_layers": {}}}]},
        "manifest.yaml student.stages.0.objective:",
        ["hidden_layers names no layer: name some, or leave it out"],
    ),
    "a layer below the first": (
        {STAGES: [STAGE | {"objective": {"hidden": 1, "hidden_layers": [0, -1]}}]},
        "manifest.yaml student.stages.0.objective:",
        ["hidden_layers: -1 is no layer: they are numbered from 0"],
    ),
    "hidden states of layers that are not there": (
        {STAGES: [STAGE | {"objective": {"hidden": 1, "hidden_layers": {0: 7}}}]},
        "student.stages.gold.objective.hidden_layers: 7:",
        ["is no layer of the teacher's 2: they are numbered from 0"],
    ),
    "hidden states read by another tokenizer": (
        {
            "student.init.tokenizer": {"train": {"vocab_size": 300}},
            STAGES: [STAGE | {"objective": {"hidden": 0.5}}],
        },
        "student.stages.gold.objective.hidden: 0.5:",
        ["needs the teacher's tokenizer, and the student has another: use ce alone"],
    ),
    "SQL without a column": (
        {STAGES: [STAGE | {"data": "SELECT sample_id, target FROM gold"}]},
        "student.stages.gold.data: 'SELECT sample_id, target FROM gold':",
        ["lacks the column source: select sample_id, source and target"],
    ),
    "SQL without the ids that distributions are of": (
        {
            STAGES: [
                STAGE
                | {
                    "data": "SELECT sample_id, source, target FROM pseudolabels;",
                    "objective": {"jsd": 1},
                }
            ]
        },
        "student.stages.gold.data: ",
        ["lacks the column token_ids", "and token_ids for jsd"],
    ),
    "SQL of a view that is none": (
        {STAGES: [STAGE | {"data": "SELECT * FROM pseudolabel"}]},
        "student.stages.gold.data: 'SELECT * FROM pseudolabel':",
        ["pseudolabel"],
    ),
    "SQL that writes": (
        {STAGES: [STAGE | {"data": "CREATE TABLE t (i INT)"}]},
        "student.stages.gold.data: 'CREATE TABLE t (i INT)':",
        [],
    ),
    "distributions of gold that is not scored": (
        {STAGES: [STAGE | {"objective": {"forward_kl": 1}}]},
        "student.stages.gold.objective: 'forward_kl':",
        ["gold has no distributions until it is scored: set score.targets to [gold]"],
    ),
    "distributions for another tokenizer": (
        {"student.init.tokenizer": {"train": {"vocab_size": 300}}},
        "student.stages.pseudolabel.objective: 'forward_kl':",
        ["needs the teacher's tokenizer, and the student has another: use ce alone"],
    ),
    "distributions without a teacher": (
        {
            "teacher": REMOVED,
            "student.init": {"config": {"model_type": "llama"}, "tokenizer": TRAINED},
            STAGES: [STAGE | {"objective": {"ce": 0.5, "tvd": 0.5}}],
        },
        "student.stages.gold.objective: 'tvd':",
        ["needs the distributions of a teacher: name one, or use ce alone"],
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
