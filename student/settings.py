"""DeepSpeed's settings of a stage: what the trainer needs, and what else the manifest says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from factory.training import Stage, Student

NEVER = 1 << 30
OFFLOADED = {
    "none": (),
    "optimizer": ("offload_optimizer",),
    "parameters": ("offload_optimizer", "offload_param"),
}


def settings_of(stage: Stage, student: Student, universal: bool = False) -> dict[str, Any]:
    """A tree as DeepSpeed takes it; `universal` if it is to load what it saved in other parts."""
    own = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # the plan decides, step by step
        "gradient_clipping": stage.clip,
        "bf16": {"enabled": student.dtype == "bfloat16"},
        "zero_optimization": _zero(student),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": universal},
    }
    return _merged({"steps_per_print": NEVER, **student.deepspeed.config}, own)


def _zero(student: Student) -> dict[str, Any]:
    moved = OFFLOADED[student.deepspeed.offload]
    return {"stage": student.deepspeed.zero_stage} | {key: {"device": "cpu"} for key in moved}


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both trees; where both say something, the second's."""
    both = {
        key: _merged(first[key], second[key])
        for key in first.keys() & second.keys()
        if isinstance(first[key], Mapping) and isinstance(second[key], Mapping)
    }
    return {**first, **second, **both}
