"""A tiny language, a tiny teacher of it, and runs that have everything but a student."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from factory import schemas
from factory.manifest import Prompt
from factory.prompting.prompts import Prompter
from factory.prompting.tokenizing import encode_targets, load_tokenizer, tokenizer_fingerprint
from factory.records import RunDirectory
from factory.training import Student, TrainTokenizer
from factory.workers import launcher_command, module_command
from student.tokenizers import train_tokenizer
from tests.runs import add_samples, add_shard, finish_generate, make_run, part

WHO = {"dog": "chien", "cat": "chat", "bird": "oiseau", "man": "homme"}
DOES = {"sees": "voit", "eats": "mange", "hears": "entend"}
TEMPLATE = "<s>{source}<sep>"
K = 8
TOP_K = {"capture": "top_k", "k": K}
TOP_P = {"capture": "top_p", "p": 0.9, "k": 24}
SAMPLED = {"capture": "sampled", "draws": 20}


def pairs() -> list[tuple[str, str]]:
    """48 sentences of unlike length, in a fixed order."""
    made = []
    for (a, x), (v, w), (b, y) in itertools.product(WHO.items(), DOES.items(), WHO.items()):
        tail = " " + " ".join([b] * (len(made) % 3)) if len(made) % 3 else ""
        told = " " + " ".join([y] * (len(made) % 3)) if len(made) % 3 else ""
        made.append((f"the {a} {v} the {b}{tail}", f"le {x} {w} le {y}{told}"))
    return made


def save_teacher(folder: Path, layers: int = 3) -> Path:
    """An untrained Llama with a tokenizer of its own: real distributions, no sense in them."""
    texts = [text for pair in pairs() for text in pair]
    tokenizer = train_tokenizer(texts, TrainTokenizer(vocab_size=320))
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def student_run(
    root: Path,
    teacher: Path,
    student: dict[str, Any],
    capture: dict[str, Any] = TOP_K,
    **sections: Any,
) -> RunDirectory:
    """A judged run over `pairs()`: 40 train, 4 validation, 4 test; every second gold is visible."""
    run = make_run(
        root,
        teacher={"model": str(teacher), "engine": "transformers"},
        prompt={"template": TEMPLATE},
        logits=capture,
        generate={"max_new_tokens": 12},
        student=student,
        data={
            name: {"path": "/nowhere/rows.tsv", "target": "target"}
            for name in ("train", "validation", "test")
        },
        **sections,
    )
    tokenizer = load_tokenizer(str(teacher))
    rows = pairs()
    encoded = Prompter(tokenizer, Prompt(template=TEMPLATE)).encode(
        [{"source": s} for s, _ in rows]
    )
    targets = encode_targets(tokenizer, [target for _, target in rows])
    add_samples(
        run,
        [
            {
                "sample_id": f"s{i:02d}",
                "split": "train" if i < 40 else "validation" if i < 44 else "test",
                "source": source,
                "gold": target,
                "gold_visible": i < 40 and i % 2 == 0,
                "prompt_ids": encoded[1][i],
                "n_prompt_tokens": len(encoded[1][i]),
            }
            for i, (source, target) in enumerate(rows)
        ],
    )
    candidates = [
        {
            "sample_id": f"s{i:02d}",
            "text": rows[i][1],
            "token_ids": targets[i],
            "n_tokens": len(targets[i]),
        }
        for i in range(40)
    ]
    add_shard(run, 0, candidates, distributions(teacher, encoded[1][:40], targets[:40], capture))
    finish_generate(run)
    run.note(
        teacher={"model": str(teacher), "fingerprint": "teacher-print"},
        tokenizer={"fingerprint": tokenizer_fingerprint(tokenizer)},
    )
    verdicts = [
        {"sample_id": f"s{i:02d}", "rank": 0, "kept": True, "selected": True, "reasons": []}
        for i in range(40)
    ]
    files = [part(run, "verdicts", verdicts, schemas.VERDICTS)]
    run.finish("judge", "judge-key", 0.1, files=files)
    return run


def distributions(
    teacher: Path,
    prompts: list[list[int]],
    targets: list[list[int]],
    capture: dict[str, Any] = TOP_K,
) -> list[dict[str, Any]]:
    """The teacher's own distributions over each target, as the view `logits` has them."""
    model = LlamaForCausalLM.from_pretrained(teacher).eval()
    torch.manual_seed(5)
    rows = []
    for i, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1)
        rows.append(
            {
                "sample_id": f"s{i:02d}",
                "n_tokens": len(target),
                "token_ids": target,
                "token_logprobs": logprobs.gather(-1, torch.tensor(target)[:, None])[:, 0].tolist(),
                **stored_of(logprobs, capture),
            }
        )
    return rows


def stored_of(logprobs: torch.Tensor, capture: dict[str, Any]) -> dict[str, Any]:
    """What a capture keeps of float [n, vocabulary] log-probabilities: columns of `logits`."""
    columns: dict[str, Any] = {}
    if capture["capture"] == "sampled":
        draws = torch.multinomial(logprobs.exp(), capture["draws"], replacement=True)
        counts = torch.zeros_like(logprobs).scatter_add_(-1, draws, torch.ones_like(draws).float())
        kept = counts > 0
    else:
        order = logprobs.argsort(-1, descending=True)
        before = logprobs.exp().gather(-1, order).cumsum(-1) - logprobs.exp().gather(-1, order)
        wide = torch.arange(logprobs.shape[-1]) < capture["k"]
        kept = (wide & (before < capture.get("p", 2.0))).gather(-1, order.argsort(-1))
    tail = logprobs.masked_fill(kept, -torch.inf).logsumexp(-1)
    pairs = [
        sorted(zip(lp[k].tolist(), k.nonzero()[:, 0].tolist(), strict=True), reverse=True)
        for lp, k in zip(logprobs, kept, strict=True)
    ]
    columns |= {
        "topk_ids": [token for row in pairs for _, token in row],
        "topk_logprobs": [value for row in pairs for value, _ in row],
        "tail_logprob": tail.tolist(),
    }
    if capture["capture"] == "top_k":
        return columns | {"k": capture["k"]}
    columns["widths"] = [len(row) for row in pairs]
    if capture["capture"] == "sampled":
        columns["draws"] = capture["draws"]
        columns["counts"] = [
            int(counts[i, token]) for i, row in enumerate(pairs) for _, token in row
        ]
    return columns


def start_prepare(run: RunDirectory) -> subprocess.CompletedProcess[str]:
    """Run the real preparation process to its end."""
    return _finished(module_command("student.prepare", run, "train-key"))


def launch(
    run: RunDirectory, processes: int = 1, port: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run the real launcher to its end."""
    return _finished(launch_command(run, processes, port))


def launch_command(run: RunDirectory, processes: int = 1, port: int = 0) -> list[str]:
    """The launcher's command, as the factory builds it; the manifest says so many processes."""
    settings = with_processes(run, processes).deepspeed
    command = launcher_command("student.train", run, processes, port or free_port(), settings)
    return [*command, "train-key"]


def with_processes(run: RunDirectory, processes: int) -> Student:
    """Have a run's manifest ask for so many processes; returns its student."""
    manifest = run.manifest()
    assert manifest.student
    student = manifest.student.model_copy(update={"processes": processes})
    run.adopt(manifest.model_copy(update={"student": student}))
    return student


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment() -> dict[str, str]:
    """What the processes need to find this checkout and no accelerator."""
    here = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": here, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def losses(run: RunDirectory, stage: str) -> list[float]:
    """The loss of every step of a stage."""
    table = pq.read_table(run.path("student", stage, "train_log.parquet"))
    return [float(loss) for loss in table["loss"].to_pylist()]


def _finished(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
