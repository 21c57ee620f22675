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
}
