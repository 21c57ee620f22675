"""What a live teacher's hidden states are worth to a small student: losses at equal steps.

A teacher learns to write a line of symbols backwards, each replaced by another. Students of half
its layers and half its width, random from their seeds, then see the same batches with
cross-entropy alone and with the term `hidden` beside it. Told are means over seeds on lines that
nobody saw, with the least and the greatest.

    python benchmarks/hidden.py [--steps 240] [--seeds 3] [--weight 1.0]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from factory.manifest import Manifest
from student.batches import Batch
from student.lesson import Lesson
from student.objectives import Weights, per_token

SYMBOLS, LENGTH, ROWS = 24, 8, 32
START, SEPARATOR, END = SYMBOLS, SYMBOLS + 1, SYMBOLS + 2
CE = Weights({"ce": 1.0})


def main() -> None:
    """Print a row for so many steps: held-out cross-entropy without and with, and the term."""
    options = _arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        teacher = _taught_teacher(options.teacher_steps)
        teacher.save_pretrained(folder)
        print(f"teacher: held-out ce {_held_out(teacher):.4f}")
        told = [
            [_curve(Path(folder), seed, options, weight) for seed in range(options.seeds)]
            for weight in (0.0, options.weight)
        ]
    print("| steps | ce alone | ce with hidden | hidden |\n|---:|---:|---:|---:|")
    for number, step in enumerate(_marks(options.steps)):
        alone, beside = ([curve[number][0] for curve in side] for side in told)
        hidden = statistics.mean(curve[number][1] for curve in told[1])
        print(f"| {step} | {_spread(alone)} | {_spread(beside)} | {hidden:.4f} |")


def _curve(
    folder: Path, seed: int, options: argparse.Namespace, weight: float
) -> list[tuple[float, float]]:
    """Held-out cross-entropy, and the last batch's term, after so many steps of one student."""
    torch.manual_seed(seed)
    student = LlamaForCausalLM(_config(layers=2, width=32))
    manifest = _manifest(folder)
    assert manifest.student is not None
    lesson = Lesson(manifest, manifest.student.stages[0], student)
    lesson.begin(torch.device("cpu"))
    optimiser = torch.optim.AdamW(lesson.taught.parameters(), lr=options.learning_rate)
    generator, told = torch.Generator().manual_seed(100 + seed), []
    for step in range(1, options.steps + 1):
        batch = _batch(generator)
        lesson.read(batch)
        ce = _ce(lesson.taught, batch)
        hidden = lesson.distance(batch).mean()
        _step(optimiser, ce + weight * hidden if weight else ce)
        if step in _marks(options.steps):
            lesson.read(
                batch
            )  # the student is held out now, and its hooks look where they are told
            told.append((_held_out(student), float(hidden.detach())))
    return told


def _taught_teacher(steps: int) -> LlamaForCausalLM:
    torch.manual_seed(17)
    model = LlamaForCausalLM(_config(layers=4, width=64))
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(18)
    for _ in range(steps):
        _step(optimiser, _ce(model, _batch(generator)))
    return model


def _step(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()


def _ce(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    logits = model(**batch.inputs, use_cache=False).logits[batch.predicts]
    return per_token(logits, batch.targets, None, batch.mask, CE)["ce"].mean()


@torch.no_grad()
def _held_out(model: LlamaForCausalLM) -> float:
    generator = torch.Generator().manual_seed(1)
    return statistics.mean(float(_ce(model, _batch(generator))) for _ in range(8))


def _batch(generator: torch.Generator) -> Batch:
    """Lines of symbols, and each backwards with every symbol moved on by one."""
    source = torch.randint(SYMBOLS, (ROWS, LENGTH), generator=generator)
    target = (source.flip(1) + 1) % SYMBOLS
    start, separator, end = (torch.full((ROWS, 1), i) for i in (START, SEPARATOR, END))
    ids = torch.cat([start, source, separator, target, end], 1)
    predicts = torch.zeros_like(ids, dtype=torch.bool)
    predicts[:, LENGTH + 1 : -1] = True
    targets = ids[:, LENGTH + 2 :].reshape(-1)
    return Batch({"input_ids": ids}, predicts, targets, torch.ones_like(targets).bool(), None)


def _config(layers: int, width: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=SYMBOLS + 3,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=32,
        pad_token_id=None,
        bos_token_id=START,
        eos_token_id=END,
    )


def _manifest(folder: Path) -> Manifest:
    stage = {"name": "s", "data": "gold", "objective": {"ce": 1.0, "hidden": 1.0}}
    tree = {
        "name": "hidden",
        "data": {"train": {"path": "none.tsv", "target": "target"}},
        "teacher": {"model": str(folder), "engine": "transformers"},
        "student": {"init": {"model": "none"}, "stages": [stage]},
    }
    return Manifest.model_validate(tree)


def _marks(steps: int) -> list[int]:
    return [1, *(round(steps * part / 4) for part in range(1, 5))]


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} … {max(values):.3f})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--teacher-steps", type=int, default=400)
    return parser.parse_args()


if __name__ == "__main__":
    main()
