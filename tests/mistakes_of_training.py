"""What users get wrong about stages, as a literal table like those of `tests.mistakes`."""

from __future__ import annotations

from tests.mistakes import REMOVED, STAGE, STAGES, Edits

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
}
