"""What this machine has: versions, accelerators, and what of seqkd can run here.

Libraries are looked for, not imported, but for torch: it alone knows whether it can use the GPU.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from factory.engines import ABILITIES
from factory.records import library_versions

GIB = 1 << 30
NEEDS = {
    "vllm": ("torch", "transformers", "vllm"),
    "transformers": ("torch", "transformers"),
    "ctranslate2": ("torch", "transformers", "ctranslate2"),
}
EXTRAS = {"vllm": "[cpu] or [gpu]", "transformers": "[train]", "ctranslate2": "[seq2seq]"}
TRAINING_NEEDS = ("torch", "transformers", "deepspeed", "sacrebleu")
# Text models need none of these, and in a CUDA build beside a CPU torch they break transformers.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")


def examine() -> dict[str, Any]:
    """Versions, machine, accelerators, engines, training and warnings, as plain values."""
    accelerators = _accelerators()
    return {
        "versions": library_versions(),
        "machine": _machine(),
        "accelerators": accelerators,
        "engines": {name: _engine(name) for name in ABILITIES},
        "training": _training(),
        "warnings": _warnings(accelerators),
    }


def show(facts: dict[str, Any]) -> Group:
    """The facts of `examine` as tables for people."""
    abilities = facts["engines"] | {"training": facts["training"]}
    return Group(
        _pairs("machine", facts["machine"] | _numbered(facts["accelerators"])),
        _pairs("versions", facts["versions"]),
        _pairs("can run here", {name: _verdict(found) for name, found in abilities.items()}),
        *(Text(f"warning: {warning}") for warning in facts["warnings"]),
    )


def _machine() -> dict[str, Any]:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / GIB, 1),
        "compiler": shutil.which("g++"),
    }


def _accelerators() -> list[dict[str, Any]]:
    """GPUs as torch sees them, or as the driver lists them where there is no torch."""
    if importlib.util.find_spec("torch") is None:
        return _listed_by_driver()
    import torch

    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [{"name": d.name, "memory_gib": round(d.total_memory / GIB, 1)} for d in devices]


def _listed_by_driver() -> list[dict[str, Any]]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    rows = answer.stdout.splitlines() if answer.returncode == 0 else []
    pairs = (row.rsplit(",", 1) for row in rows)
    return [{"name": name, "memory_gib": round(int(mib) / 1024, 1)} for name, mib in pairs]


def _engine(name: str) -> dict[str, Any]:
    return _ability(NEEDS[name], EXTRAS[name]) | {"decodings": list(ABILITIES[name].decodings)}


def _training() -> dict[str, Any]:
    ability = _ability(TRAINING_NEEDS, "[train]")
    if ability["ready"] and shutil.which("g++") is None:
        return {"ready": True, "reason": "no g++: more than one process on CPU cannot be started"}
    return ability


def _ability(needs: tuple[str, ...], extra: str) -> dict[str, Any]:
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    reason = f"not installed: {', '.join(missing)}; install seqkd{extra}" if missing else ""
    return {"ready": not missing, "reason": reason}


def _warnings(accelerators: list[dict[str, Any]]) -> list[str]:
    if "+cpu" not in _version("torch"):
        return []
    warnings = [
        f"{name} {_version(name)} is no build for this CPU torch: pip uninstall {name}"
        for name in UNWANTED
        if _version(name) and "+cpu" not in _version(name)
    ]
    if not accelerators and _listed_by_driver():
        warnings.append("there is a GPU, but torch is a CPU build: make clean, then make setup")
    return warnings


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _verdict(ability: dict[str, Any]) -> str:
    return "; ".join(filter(None, ["yes" if ability["ready"] else "no", ability["reason"]]))


def _numbered(accelerators: list[dict[str, Any]]) -> dict[str, str]:
    if not accelerators:
        return {"accelerators": "none"}
    shown = (f"{device['name']}, {device['memory_gib']} GiB" for device in accelerators)
    return {f"accelerator {number}": text for number, text in enumerate(shown)}


def _pairs(title: str, facts: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, min_width=50)
    for name, value in facts.items():
        shown = "not found" if value is None else str(value)
        table.add_row(Text(name.replace("_", " ")), Text(shown))
    return table
