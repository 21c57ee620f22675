"""Training, side by side: this trainer, the Hugging Face Trainer and TRL's SFTTrainer.

The same model, rows (token ids, prompts masked), rate, float32, and tokens per optimiser step on
average. Each peer twice: as a user starts it (rows in random order, padded to the longest; TRL
checkpoints its gradients unless told not to), and with rows of like length together, and that
checkpointing off. A process a side, which trains an epoch from the same start whenever it is its
turn; every round in another order. Loss is the cross-entropy of held-out rows after the same data.

    python benchmarks/training.py [--rounds 3] [--threads 1] [--processor-time]

The peers are no dependency: `pip install trl accelerate datasets`, or with `--target FOLDER` and
FOLDER on the PYTHONPATH; one that is not installed is named, and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

VOCABULARY, SPECIALS = 6000, 4
RATE = 3e-3
HELD_OUT = 100
OURS = "seqkd"
SIDES = {
    OURS: (),
    "seqkd chunked_head": (),
    "Trainer": ("transformers", "accelerate"),
    "Trainer by length": ("transformers", "accelerate"),
    "SFTTrainer": ("trl", "accelerate", "datasets"),
    "SFTTrainer by length": ("trl", "accelerate", "datasets"),
}
Clock = Callable[[], float]


def main() -> None:
    """Print a row a side: target tokens a second, ours over theirs, peak MiB, loss."""
    options = _arguments()
    if options.side:
        _serve(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = folder
        _prepare(Path(folder), options.rows)
        workers = [Worker(name, folder) for name in SIDES if _installed(name)]
        for turn in range(options.rounds):
            first = turn % len(workers)
            for worker in workers[first:] + workers[:first]:
                worker.turn()
        for worker in workers:
            worker.end()
        _print(workers)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--batch-tokens", type=int, default=4096, help="of an optimiser step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processor-time", action="store_true", help="for a busy machine")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args()


def _installed(name: str) -> bool:
    missing = [package for package in SIDES[name] if find_spec(package) is None]
    if missing:
        print(f"{name}: {', '.join(missing)} not installed: pip install {' '.join(missing)}")
    return not missing


@dataclass
class Worker:
    """The process of one side, waiting for its turns; the first warms it up and is not counted."""

    name: str
    folder: str
    turns: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], "--folder", self.folder]
        self.process = subprocess.Popen(
            [*command, "--side", self.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.turn()
        self.turns.clear()

    def turn(self) -> None:
        """Have it train once."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = next((line for line in self.process.stdout if line.startswith('{"')), None)
        if line is None:
            sys.exit(f"{self.name} failed")
        self.turns.append(json.loads(line))

    def end(self) -> None:
        """Close it."""
        self.process.communicate()

    def all(self, figure: str) -> list[float]:
        """A figure of every counted turn."""
        return [turn[figure] for turn in self.turns]


def _print(workers: list[Worker]) -> None:
    print(f"{'side':22}{'tok/s':>8}{'ours over it':>14}{'spread':>12}{'peak MiB':>10}{'loss':>8}")
    ours = workers[0].all("speed")
    for worker in workers:
        ratios = sorted(a / b for a, b in zip(ours, worker.all("speed"), strict=True))
        print(
            f"{worker.name:22}{statistics.median(worker.all('speed')):8,.0f}"
            f"{statistics.median(ratios):14.2f}{f'{ratios[0]:.2f}-{ratios[-1]:.2f}':>12}"
            f"{max(worker.all('peak')):10,.0f}{worker.all('loss')[-1]:8.3f}"
        )


def _serve(options: argparse.Namespace) -> None:
    """Train once for every line of standard input."""
    import torch

    from student.entry import quieten

    quieten()
    torch.set_num_threads(options.threads)
    side = {"seqkd": _ours, "Trainer": _trainer, "SFTTrainer": _sft}[options.side.split()[0]]
    variant = options.side.partition(" ")[2]
    folder = Path(options.folder)
    clock = time.process_time if options.processor_time else time.perf_counter
    rows = json.loads((folder / "rows.json").read_text())
    for _ in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # an earlier peak is forgotten
        before = _status("VmRSS")
        model, seconds, tokens = side(options, variant, rows[HELD_OUT:], clock)
        told = {"speed": tokens / seconds, "peak": _status("VmHWM") - before}
        print(json.dumps(told | {"loss": _loss(model, rows[:HELD_OUT])}), flush=True)


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def _loss(model: Any, rows: list[dict[str, list[int]]]) -> float:
    """Cross-entropy per target token, row by row."""
    import torch

    total, count = 0.0, 0
    model.eval()
    for row in rows:
        labels = torch.tensor([_labels(row)])
        with torch.inference_mode():
            loss = model(input_ids=torch.tensor([_ids(row)]), labels=labels).loss
        total, count = total + loss.item() * len(row["target"]), count + len(row["target"])
    return total / count


def _ids(row: dict[str, list[int]]) -> list[int]:
    return row["prompt"] + row["target"]


def _labels(row: dict[str, list[int]]) -> list[int]:
    return [-100] * len(row["prompt"]) + row["target"]


def _ours(
    options: argparse.Namespace, variant: str, rows: list[Any], clock: Clock
) -> tuple[Any, float, int]:
    """A stage of one epoch; its checkpoint is written after the clock has stopped."""
    import torch.distributed as dist

    from factory.records import RunDirectory
    from student.engine import join_processes
    from student.log import TrainLog
    from student.trainer import StageTrainer
    from student.watch import Watch

    if not dist.is_initialized():
        _alone()
        join_processes(1)
    run = RunDirectory(Path(options.folder))
    manifest, planned = _plan(run, options, variant, len(rows))
    shutil.rmtree(planned.folder / "checkpoints", ignore_errors=True)
    trainer = StageTrainer(run, manifest, planned)
    began, ticks = clock(), []

    def advance(done: int, _: str = "", **__: Any) -> None:
        if done:
            ticks.append(clock())

    log = TrainLog(run, planned.folder, {"stage": "stage"}, keeps=False)
    position = trainer.train(Watch(log, advance))
    trainer.head.predicts = None
    return trainer.engine.module, ticks[-1] - began, position.target_tokens


def _alone() -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ.update(alone, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _plan(run: Any, options: argparse.Namespace, variant: str, rows: int) -> tuple[Any, Any]:
    from factory.manifest import Manifest
    from student.dataset import DataRecord
    from student.plan import InitRecord, PlannedStage

    stage = {"name": "stage", "data": "gold", "learning_rate": RATE, "warmup": 0}
    stage |= {"schedule": "constant", "batch_tokens": options.batch_tokens}
    start = run.path("start")
    student: dict[str, Any] = {"init": {"model": str(start)}, "stages": [stage]}
    student |= dict.fromkeys(variant.split(), True)
    train = {"path": "rows.tsv", "target": "target"}
    tree = {"name": "training", "data": {"train": train}, "student": student}
    manifest = Manifest.model_validate(tree | {"prompt": {"template": "{source}"}})
    run.adopt(manifest)
    assert manifest.student
    init = InitRecord("start", 0, [], "own", True, None, VOCABULARY, False)
    data = DataRecord("rows", rows=rows, portions=[rows])
    folder = run.path("student", "stage")
    return manifest, PlannedStage(manifest.student.stages[0], folder, start, "key", data, init)


def _trainer(
    options: argparse.Namespace, variant: str, rows: list[Any], clock: Clock
) -> tuple[Any, float, int]:
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    start = Path(options.folder, "start")
    arguments = TrainingArguments(**_peer(options, variant, rows))
    data: Any = [{"input_ids": _ids(row), "labels": _labels(row)} for row in rows]
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(start),
        args=arguments,
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(start)),
    )
    return _timed(trainer, rows, clock)


def _sft(
    options: argparse.Namespace, variant: str, rows: list[Any], clock: Clock
) -> tuple[Any, float, int]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    start = Path(options.folder, "start")
    arguments = _peer(options, variant, rows) | {"bf16": False}
    if variant:
        arguments |= {"gradient_checkpointing": False}
    data = [{"input_ids": _ids(row), "labels": _labels(row)} for row in rows]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(start),
        args=SFTConfig(**arguments),
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(start),
    )
    return _timed(trainer, rows, clock)


def _peer(options: argparse.Namespace, variant: str, rows: list[Any]) -> dict[str, Any]:
    """Settings of both peers: the rows that have `batch_tokens` on average make a step."""
    mean = statistics.mean(len(_ids(row)) for row in rows)
    given = {
        "output_dir": str(Path(options.folder, "peer")),
        "per_device_train_batch_size": round(options.batch_tokens / mean),
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",  # ours ends at its final rate, theirs a step before it
        "weight_decay": 0.01,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 17,
    }
    return given | ({"train_sampling_strategy": "group_by_length"} if variant else {})


def _timed(trainer: Any, rows: list[Any], clock: Clock) -> tuple[Any, float, int]:
    """Train from the first step's beginning to the last one's end."""
    from transformers import TrainerCallback

    class Ticks(TrainerCallback):
        at: list[float] = []  # noqa: RUF012

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            Ticks.at.append(clock())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            Ticks.at.append(clock())

    trainer.add_callback(Ticks)
    trainer.train()
    return trainer.model, Ticks.at[-1] - Ticks.at[0], sum(len(row["target"]) for row in rows)


def _prepare(folder: Path, count: int) -> None:
    """The model to start from, and rows whose target is the prompt, word by word."""
    import numpy as np
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(17)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=336,
        num_hidden_layers=4,
        num_attention_heads=4,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "start")
    specials = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "sep_token": "<sep>"}
    words = [*specials.values(), *(f"w{i}" for i in range(SPECIALS, VOCABULARY))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}))
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)
    made.save_pretrained(folder / "start")
    random = np.random.default_rng(17)
    often = 1 / np.arange(1, VOCABULARY - SPECIALS + 1)  # Zipf's law
    told = random.permutation(len(often))
    drawn = [
        random.choice(len(often), random.integers(8, 38), p=often / often.sum())
        for _ in range(count + HELD_OUT)
    ]
    rows = [
        {"prompt": [1, *(w + SPECIALS).tolist(), 3], "target": [*(told[w] + SPECIALS).tolist(), 2]}
        for w in drawn
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    _write(folder / "student" / "stage" / "data", rows[HELD_OUT:])


def _write(folder: Path, rows: list[dict[str, list[int]]]) -> None:
    import pyarrow as pa

    from student.dataset import PLAIN, ROWS

    folder.mkdir(parents=True)
    table = [
        {"sample_id": str(i), "prompt_ids": row["prompt"], "target_ids": row["target"]}
        for i, row in enumerate(rows)
    ]
    with pa.ipc.new_file(str(folder / ROWS), PLAIN) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(table, schema=PLAIN))


if __name__ == "__main__":
    main()
