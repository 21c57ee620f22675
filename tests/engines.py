"""Real engines for tests, small ones, kept to the end of the process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from factory.decoding import Generate
from factory.engines import Engine, EngineOptions, Request, Result, decode, open_engine

# Inside one process vLLM has one world: an engine that is closed, or only forgotten, ends them all.
KEPT: list[Engine] = []
FEW_BLOCKS = {"num_gpu_blocks_override": 64}


def opened_vllm(folder: Path, k: int = 0, *, logprobs: bool = True, **generate: Any) -> Engine:
    """A vLLM engine with a small cache, never closed: see `KEPT`."""
    asked = EngineOptions(str(folder), k=k, generate=Generate(**generate), logprobs=logprobs)
    KEPT.append(open_engine("vllm", replace(asked, options=FEW_BLOCKS)))
    return KEPT[-1]


def one_world() -> None:
    """A process group of this process alone, where there is none; never ended: see `KEPT`."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def results(engine: Engine, requests: Iterable[Request], window: int = 8) -> dict[str, Result]:
    """Every request's result, by its key."""
    return {result.key: result for result in decode(engine, requests, window)}
