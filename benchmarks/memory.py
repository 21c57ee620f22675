"""How memory grows with the data.

Peak resident memory of generate, judge and stage preparation over few and over many sources, with
a tiny teacher, each step in a process of its own.

    python benchmarks/memory.py [--sizes 5000 50000] [--engine vllm]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from factory.training import TrainTokenizer
from student.tokenizers import train_tokenizer

WORDS = "the a cat dog horse sees hears follows old new red house river road and not".split()
STEPS = {
    "generate": ["factory.cli", "generate"],
    "judge": ["factory.cli", "judge"],
    "prepare": ["student.prepare"],
}


def main() -> None:
    """Print a row a step: peak MiB over few sources, over many, and the difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs=2, default=[5000, 50000])
    parser.add_argument("--engine", default="vllm")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        teacher = _teacher(Path(folder))
        peaks = [_peaks(Path(folder), teacher, size, options.engine) for size in options.sizes]
    small, large = options.sizes
    print(f"{'step':10}{small:>12,}{large:>12,}{'difference':>12}   peak MiB")
    for step in STEPS:
        few, many = (peak[step] for peak in peaks)
        print(f"{step:10}{few:12,.0f}{many:12,.0f}{many - few:12,.0f}")


def _peaks(folder: Path, teacher: Path, size: int, engine: str) -> dict[str, float]:
    manifest = folder / f"{size}.json"
    manifest.write_text(json.dumps(_manifest(folder, teacher, size, engine)), encoding="utf-8")
    run = folder / f"run-{size}"
    commands = {
        step: [
            sys.executable,
            "-m",
            *command,
            *([str(run), "-"] if step == "prepare" else [str(manifest), "--run-dir", str(run)]),
        ]
        for step, command in STEPS.items()
    }
    return {step: _peak(command) for step, command in commands.items()}


def _peak(command: list[str]) -> float:
    """Peak resident memory, in MiB, of the largest among a command and its workers."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return usage.ru_maxrss / 1024


def _manifest(folder: Path, teacher: Path, size: int, engine: str) -> dict[str, Any]:
    sources = folder / f"{size}.txt"
    digits = "abcdefgh"
    with sources.open("w", encoding="utf-8") as stream:
        for number in range(size):
            spelled = "".join(digits[int(d)] for d in f"{number:o}")
            words = [WORDS[(number >> shift) % len(WORDS)] for shift in range(0, 12, 2)]
            stream.write(f"{' '.join(words)} {spelled}\n")
    return {
        "name": "memory",
        "data": {"unlabeled": {"source": str(sources)}},
        "prompt": {"template": "<s>{source}<sep>"},
        "teacher": {"model": str(teacher), "engine": engine},
        "generate": {"max_new_tokens": 12, "window": 256, "shard_size": 1024},
        "logits": {"capture": "top_k", "k": 8},
        "judge": {"rules": ["error"]},
        "student": {
            "init": {"from_teacher": {"layers": 1}},
            "stages": [
                {
                    "name": "pseudolabel",
                    "data": "pseudolabels",
                    "objective": {"ce": 1, "forward_kl": 1},
                }
            ],
        },
    }


def _teacher(folder: Path) -> Path:
    """A random Llama of two narrow layers: it seldom stops, so that every target is as long."""
    tokenizer = train_tokenizer([" ".join(WORDS)] * 10, TrainTokenizer(vocab_size=300))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        head_dim=32,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(17)
    LlamaForCausalLM(config).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    return folder / "teacher"


if __name__ == "__main__":
    main()
