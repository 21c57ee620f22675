"""Beam search over vLLM against its own `LLM.beam_search` and Hugging Face's `generate`.

The same sentences and length caps, each side in a process of its own, one after the other. Prints
for each: sentences a second (loading and one warming batch not counted), mean model score
(sum_logprob / tokens, the end token among them), BLEU, peak memory. Then how many of our best
hypotheses are Hugging Face's, and every other with both scores.

    python benchmarks/beam.py --model TEACHER --sources en.gz --references fr.gz --rows 500
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import sacrebleu

from benchmarks.sentences import parser_of, requests_of, rows_of
from factory.decoding import Generate
from factory.engines import EngineOptions, Request, decode, open_engine
from factory.engines.vllm import prepare_environment
from factory.prompting.tokenizing import decode_targets, load_tokenizer
from factory.sources import Row

WARMING = 8


@dataclass(frozen=True)
class Job:
    """What every side is given."""

    model: str
    prompts: list[list[int]]
    width: int
    cap: int
    batch: int


@dataclass(frozen=True)
class Best:
    """A source's best hypothesis: the ids it produced, the end token included, and their sum."""

    ids: list[int]
    sum_logprob: float

    @property
    def score(self) -> float:
        """Nats a token."""
        return self.sum_logprob / len(self.ids)


@dataclass(frozen=True)
class Measured:
    """The best hypotheses in the order of the prompts, what they took, and the peak in MiB."""

    best: list[Best]
    seconds: float
    peak: float


def main() -> None:
    """Print a table a width, and the differences between ours and Hugging Face's."""
    asked = _arguments()
    rows = rows_of(asked)
    prompts = [request.prompt_ids for request in requests_of(asked, Generate())]
    for width in asked.widths:
        told = ("width", "side", "cap", "sent/s", "model score", "BLEU", "peak MiB")
        print(f"\n{len(rows)} sources\n\n| {' | '.join(told)} |\n|{'---|' * len(told)}")
        job = Job(asked.model, prompts, width, asked.cap, asked.batch)
        ours = _show(asked, rows, job, "ours")
        peer_cap = asked.peer_cap or max(len(best.ids) for best in ours.best)
        peer = _show(asked, rows, job, "LLM.beam_search")
        theirs = _show(asked, rows, job, "generate")
        tight = Job(asked.model, prompts, width, peer_cap, asked.batch)
        for side in ("ours", "LLM.beam_search", "generate"):
            _show(asked, rows, tight, side)
        print(f"\nours / LLM.beam_search at {asked.cap}: {peer.seconds / ours.seconds:.2f}")
        print(f"ours / generate in batches of {asked.batch}: {theirs.seconds / ours.seconds:.2f}")
        _compare(ours, theirs)


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, "<s>{source}<sep>")
    parser.add_argument("--widths", type=int, nargs="*", default=[4, 8])
    parser.add_argument("--cap", type=int, default=64)
    parser.add_argument(
        "--peer-cap", type=int, default=0, help="0: the longest target that ours found"
    )
    parser.add_argument("--batch", type=int, default=32, help="sources in a batch of generate")
    return parser.parse_args()


def _show(asked: argparse.Namespace, rows: Sequence[Row], job: Job, side: str) -> Measured:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        made = pool.submit(_measure, side, job).result()
    texts = decode_targets(load_tokenizer(asked.model), [best.ids for best in made.best])
    bleu = sacrebleu.corpus_bleu(texts, [[row.gold or "" for row in rows]]).score
    score = sum(best.score for best in made.best) / len(made.best)
    rate = len(made.best) / made.seconds
    figures = (job.width, side, job.cap, f"{rate:.1f}", f"{score:.4f}", f"{bleu:.2f}")
    print("| " + " | ".join(map(str, (*figures, f"{made.peak:,.0f}"))) + " |", flush=True)
    return made


def _measure(side: str, job: Job) -> Measured:
    search = {"ours": _ours, "LLM.beam_search": _peer, "generate": _generate}[side](job)
    search(job.prompts[:WARMING])
    began = time.monotonic()
    best = search(job.prompts)
    seconds = time.monotonic() - began
    users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(user).ru_maxrss for user in users) / 1024
    return Measured(best, seconds, peak)


Search = Callable[[Sequence[list[int]]], list[Best]]


def _ours(job: Job) -> Search:
    generate = Generate(decoding="beam", beam_width=job.width, max_new_tokens=job.cap)
    engine = open_engine("vllm", EngineOptions(job.model, generate=generate))

    def search(prompts: Sequence[list[int]]) -> list[Best]:
        requests = [Request(str(i), ids, job.cap) for i, ids in enumerate(prompts)]
        found = {r.key: r.hypotheses[0] for r in decode(engine, requests, generate.window)}
        ordered = [found[request.key] for request in requests]
        return [Best(h.token_ids.tolist(), h.sum_logprob) for h in ordered]

    return search


def _peer(job: Job) -> Search:
    """The one inside vLLM, with the settings that ours runs with: they help it too."""
    prepare_environment()
    import torch
    from vllm import LLM
    from vllm.sampling_params import BeamSearchParams

    blocks = {} if torch.cuda.is_available() else {"block_size": 32}
    llm = LLM(job.model, dtype="float32", max_logprobs=-1, max_num_seqs=512, **blocks)
    parameters = BeamSearchParams(
        beam_width=job.width, max_tokens=job.cap, include_stop_str_in_output=True
    )

    def search(prompts: Sequence[list[int]]) -> list[Best]:
        asked: Any = [{"prompt_token_ids": ids} for ids in prompts]
        best = [output.sequences[0] for output in llm.beam_search(asked, parameters)]
        pairs = zip(prompts, best, strict=True)
        return [Best(one.tokens[len(ids) :], one.cum_logprob or 0.0) for ids, one in pairs]

    return search


def _generate(job: Job) -> Search:
    """Batches of like length, padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32).to(device).eval()
    [end] = {model.generation_config.eos_token_id}

    def search(prompts: Sequence[list[int]]) -> list[Best]:
        best: dict[int, Best] = {}
        for places in _batches(prompts, job.batch):
            width = max(len(prompts[place]) for place in places)
            padding = [width - len(prompts[place]) for place in places]
            pairs = list(zip(places, padding, strict=True))
            told = model.generate(
                torch.tensor([[end] * pad + prompts[p] for p, pad in pairs], device=device),
                attention_mask=torch.tensor(
                    [[0] * pad + [1] * (width - pad) for pad in padding], device=device
                ),
                num_beams=job.width,
                do_sample=False,
                max_new_tokens=job.cap,
                return_dict_in_generate=True,
                output_scores=True,
            )
            scores = told.sequences_scores.tolist()
            for place, ids, score in zip(places, told.sequences.tolist(), scores, strict=True):
                kept = _until(end, ids[width:])
                best[place] = Best(kept, score * len(kept))
        return [best[place] for place in range(len(prompts))]

    return search


def _batches(prompts: Sequence[list[int]], size: int) -> Iterator[list[int]]:
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    for first in range(0, len(order), size):
        yield order[first : first + size]


def _until(end: int, ids: list[int]) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids


def _compare(ours: Measured, theirs: Measured) -> None:
    pairs = list(zip(ours.best, theirs.best, strict=True))
    other = [place for place, (a, b) in enumerate(pairs) if a.ids != b.ids]
    same = [abs(a.score - b.score) for a, b in pairs if a.ids == b.ids]
    print(f"the same best hypothesis: {len(same)} of {len(pairs)}", end=", ")
    print(f"scores apart by at most {max(same, default=0.0):.1e}")
    for place in other:
        a, b = pairs[place]
        print(
            f"- source {place}: ours {a.score:.6f}, theirs {b.score:.6f}: {a.score - b.score:+.1e}"
        )


if __name__ == "__main__":
    main()
