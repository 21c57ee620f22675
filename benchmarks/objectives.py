"""What an objective costs: the time of a training step, and its peak memory.

Cross-entropy alone (PyTorch's and ours), with cached distributions of k tokens, with draws, and
with the teacher live over the whole vocabulary: collate, forward, loss, backward and optimiser, in
turns in one process; peaks in a process a side. Rows are the teacher's own samples.

    python benchmarks/objectives.py --teacher DIR [--layers 2] [--rounds 9]
    python benchmarks/objectives.py --vocabulary 50000 [--profile]     # random weights
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from student.batches import Batch, Layout, collate
from student.dataset import ROWS, WITH_DISTRIBUTIONS, StageRows
from student.objectives import Weights, combine, per_token
from student.trainer import TargetHead

CE, BOTH = Weights({"ce": 1.0}), Weights({"ce": 0.5, "forward_kl": 0.5})
PROMPT, TARGET = 16, 20
BASE = "ce, torch"


def main() -> None:
    """Print a row a side: milliseconds a step, times those of the base, peak MiB."""
    options = _arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(17)
    if options.side:
        _tell_peak(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = folder
        _prepare(options, Path(folder))
        sides = [Side(name, options) for name in _names(options)]
        times = _in_turns(sides, options.rounds)
        peaks = {side.name: _peak_of(side.name, folder) for side in sides}
        _print(times, peaks)
        if options.profile:
            _profile(sides)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", help="folder of a causal model; else one of random weights")
    parser.add_argument("--layers", type=int, default=2, help="of the student, cut from --teacher")
    parser.add_argument("--vocabulary", type=int, default=50000, help="of the random teacher")
    parser.add_argument("--width", type=int, default=256, help="of the random teacher")
    parser.add_argument("--rows", type=int, default=228, help="of 36 tokens, all in one step")
    parser.add_argument("--k", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true", help="for a busy machine")
    parser.add_argument("--profile", action="store_true", help="print what each side spends where")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args()


def _names(options: argparse.Namespace) -> list[str]:
    kept = [f"ce + top {k}" for k in options.k]
    return [BASE, "ce", *kept, f"ce + {options.draws} draws", "ce + live teacher"]


class Side:
    """One objective over its own copy of the student."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, folder = name, Path(options.folder)
        self.clock = time.process_time if options.processor_time else time.perf_counter
        self.model = AutoModelForCausalLM.from_pretrained(folder / "student")
        self.model.train()
        self.head = TargetHead(self.model)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.cached = bool(re.search(r"\d", name))
        self.rows = StageRows(folder / (name if self.cached else _names(options)[2]))
        self.order = np.random.default_rng(17).permutation(len(self.rows))
        self.loss = {BASE: _torch_ce, "ce + live teacher": _dense}.get(name, self._ours)
        self.teacher = _teacher(folder) if name == "ce + live teacher" else None

    def step(self) -> float:
        """Seconds of one step over all rows."""
        began = self.clock()
        batch = collate(self.rows, self.order, Layout(0), self.cached)
        self.head.predicts = batch.predicts
        logits = self.model(**batch.inputs, use_cache=False).logits
        (self.loss(logits, batch, self.teacher) / len(batch.targets)).backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return self.clock() - began

    def _ours(self, logits: torch.Tensor, batch: Batch, _: Any) -> torch.Tensor:
        weights = BOTH if self.cached else CE
        terms = per_token(logits, batch.targets, batch.teacher, batch.mask, weights)
        return combine(terms, weights).sum()


def _torch_ce(logits: torch.Tensor, batch: Batch, _: Any) -> torch.Tensor:
    return F.cross_entropy(logits, batch.targets, reduction="sum")


def _dense(
    logits: torch.Tensor, batch: Batch, teacher: tuple[Any, TargetHead] | None
) -> torch.Tensor:
    """As trainers with a live teacher do it: both distributions whole, in float32."""
    assert teacher is not None
    model, head = teacher
    head.predicts = batch.predicts
    with torch.no_grad():
        told = model(**batch.inputs, use_cache=False).logits.log_softmax(-1)
    said = logits.log_softmax(-1)
    ce = F.nll_loss(said, batch.targets, reduction="sum")
    return 0.5 * ce + 0.5 * F.kl_div(said, told, log_target=True, reduction="sum")


def _teacher(folder: Path) -> tuple[Any, TargetHead]:
    model = AutoModelForCausalLM.from_pretrained(folder / "teacher").eval()
    return model, TargetHead(model)


def _in_turns(sides: list[Side], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side's steps, round by round; every round in another order."""
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for side in sides:
        side.step()
    for turn in range(rounds):
        first = turn % len(sides)
        for side in sides[first:] + sides[:first]:
            times[side.name].append(side.step())
    return times


def _print(times: dict[str, list[float]], peaks: dict[str, dict[str, float]]) -> None:
    print(f"{'side':18}{'ms':>9}{'x ' + BASE:>12}{'spread':>14}{'peak MiB':>10}{'steps add':>11}")
    for name, seconds in times.items():
        ratios = sorted(a / b for a, b in zip(seconds, times[BASE], strict=True))
        median, low, high = statistics.median(ratios), ratios[0], ratios[-1]
        peak = peaks[name]
        print(
            f"{name:18}{statistics.median(seconds) * 1e3:9.0f}{median:12.3f}"
            f"{f'{low:.2f}-{high:.2f}':>14}{peak['peak']:10,.0f}{peak['added']:11,.0f}"
        )


def _peak_of(name: str, folder: str) -> dict[str, float]:
    """Memory of a process that takes three steps of one side."""
    command = [sys.executable, __file__, *sys.argv[1:], "--folder", folder, "--side", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _tell_peak(options: argparse.Namespace) -> None:
    side = Side(options.side, options)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of loading, is forgotten
    before = _status("VmRSS")
    for _ in range(3):
        side.step()
    print(json.dumps({"peak": _status("VmHWM"), "added": _status("VmHWM") - before}))


def _status(name: str) -> float:
    """A figure of this process in MiB."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else math.nan


def _profile(sides: list[Side]) -> None:
    """Milliseconds of one step of each side by operator, the ten that take most."""
    for side in sides:
        with torch.profiler.profile() as profiler:
            side.step()
        print(side.name)
        print(profiler.key_averages().table("self_cpu_time_total", row_limit=10))


def _prepare(options: argparse.Namespace, folder: Path) -> None:
    """Teacher, student and one file of rows a capture."""
    teacher = _open_teacher(options)
    teacher.save_pretrained(folder / "teacher")
    config = teacher.config.__class__.from_dict(teacher.config.to_dict())
    config.num_hidden_layers = options.layers
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "student")
    rows = list(_rows(teacher, options.rows))
    for k in options.k:
        _write(folder / f"ce + top {k}", [_top(row, k) for row in rows])
    draws = options.draws
    drawn = [_drawn(row, draws) for row in rows]
    width = np.mean(np.concatenate([row["widths"] for row in drawn]))
    print(f"{TARGET * options.rows:,} target tokens a step; {draws} draws are {width:.1f} tokens")
    _write(folder / f"ce + {draws} draws", drawn)


def _open_teacher(options: argparse.Namespace) -> Any:
    if options.teacher:
        return AutoModelForCausalLM.from_pretrained(options.teacher).eval()
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=2 * options.width,
        num_hidden_layers=6,
        num_attention_heads=4,
        tie_word_embeddings=True,
        initializer_range=0.2,  # peaked, as a trained teacher is
    )
    return LlamaForCausalLM(config).eval()


def _rows(teacher: Any, count: int) -> Iterator[dict[str, Any]]:
    """Random prompts, targets drawn from the teacher, and its log-probabilities over them."""
    prompts = torch.randint(4, teacher.config.vocab_size, (count, PROMPT))
    for some in prompts.split(32):
        with torch.inference_mode():
            ids = teacher.generate(
                some,
                attention_mask=torch.ones_like(some),
                do_sample=True,
                min_new_tokens=TARGET,
                max_new_tokens=TARGET,
            )
            told = teacher(ids).logits[:, PROMPT - 1 : -1].log_softmax(-1)
        for prompt, target, logprobs in zip(some, ids[:, PROMPT:], told, strict=True):
            known = logprobs.gather(-1, target[:, None])[:, 0]
            row = {"prompt_ids": prompt, "target_ids": target, "logprobs": logprobs}
            yield row | {"token_logprobs": known}


def _top(row: dict[str, Any], k: int) -> dict[str, Any]:
    found = row["logprobs"].topk(k)
    tail = (1 - found.values.exp().sum(-1)).clamp(min=1e-7).log()
    stored = {"topk_ids": found.indices, "topk_logprobs": found.values, "tail_logprob": tail}
    return {**row, **stored, "widths": [k] * TARGET, "counts": [], "draws": 0}


def _drawn(row: dict[str, Any], draws: int) -> dict[str, Any]:
    taken = torch.multinomial(row["logprobs"].exp(), draws, replacement=True)
    found = [position.unique(return_counts=True) for position in taken]
    return {
        **row,
        "topk_ids": torch.cat([ids for ids, _ in found]),
        "counts": torch.cat([counts for _, counts in found]),
        "widths": [len(ids) for ids, _ in found],
        "draws": draws,
    }


def _write(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir()
    columns = [
        pa.array([_flat(row.get(f.name)) for row in rows], f.type) for f in WITH_DISTRIBUTIONS
    ]
    batch = pa.RecordBatch.from_arrays(columns, schema=WITH_DISTRIBUTIONS)
    with pa.ipc.new_file(str(folder / ROWS), WITH_DISTRIBUTIONS) as writer:
        writer.write_batch(batch)


def _flat(value: Any) -> Any:
    return value.flatten().numpy() if isinstance(value, torch.Tensor) else value


if __name__ == "__main__":
    main()
