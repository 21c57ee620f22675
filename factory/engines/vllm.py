"""vLLM, driven through its own engine loop. The one place that imports it.

Run with vLLM 0.32 (CPU) alone so far.
"""

from __future__ import annotations

import functools
import os
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from factory.beam import Rules
from factory.decoding import Generate
from factory.engines.arrays import Names, rows, take_over
from factory.engines.base import EngineOptions, Hypothesis, Request, Result
from factory.engines.rollouts import Handle, Rollouts
from factory.errors import EngineError

# One process, nothing compiled: a small model loads in seconds instead of half a minute, and is no
# slower on a CPU. On a GPU vLLM's own defaults stand, its core runs beside us.
CPU_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "2",
}
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CONFIGURE_LOGGING": "1"}
DEFAULT_MAX_LOGPROBS = 20
MOST_RUNNING = 256


class VllmEngine:
    """Continuous batching: a request joins and leaves the running batch on its own."""

    encoder_decoder = False

    def __init__(self, options: EngineOptions) -> None:
        """Load the model.

        Raises:
            EngineError: vLLM is not installed, or refuses the model or an option.
        """
        self._k, self._generate = options.k, options.generate
        self._logprobs = options.k if options.logprobs or options.k else None
        self._open: dict[str, _Draws] = {}
        self._refused: list[Result] = []
        self._engine = _load(options)
        take_arrays()
        self._parameters = _sampling_class()
        self._refusals = _refusals()
        self._searches = _searches(options, self._engine, self._refusals)
        self.context: int | None = int(self._engine.model_config.max_model_len)

    @property
    def unfinished(self) -> int:
        """Requests submitted and not yet given back."""
        return len(self._open) + len(self._refused) + len(self._searches or ())

    def submit(self, request: Request) -> None:
        """Queue a request; what vLLM refuses comes back with the next step."""
        if self._searches is not None and request.target_ids is None:
            self._searches.submit(request)
            return
        prompt = {"prompt_token_ids": [*request.prompt_ids, *(request.target_ids or ())[:-1]]}
        seeds: tuple[int | None, ...] = request.seeds or (None,)
        self._open[request.key] = _Draws(request, seeds)
        try:
            for ordinal, seed in enumerate(seeds):
                name = f"{request.key}/{ordinal}"
                self._engine.add_request(name, prompt, self._sampling(request, seed))
        except self._refusals as error:
            del self._open[request.key]
            self._refused.append(Result(request.key, [], " ".join(str(error).split())))

    def step(self) -> list[Result]:
        """One pass of the engine: a token for every running request."""
        results, self._refused = self._refused, []
        if self._searches is not None:
            results += self._searches.turn()
        if self._engine.has_unfinished_requests():
            results += [r for output in self._engine.step() if (r := self._take(output))]
        return results

    def close(self) -> None:
        """Shut the engine's core down, where it runs beside us."""
        self._engine.engine_core.shutdown()

    def _take(self, output: Any) -> Result | None:
        """File a draw with its request; the result, once all of them are there."""
        if self._searches is not None and self._searches.take(output):
            return None
        if not output.finished:
            return None
        key, _, ordinal = output.request_id.rpartition("/")
        draws = self._open[key]
        draws.outputs[int(ordinal)] = output
        if len(draws.outputs) < len(draws.seeds):
            return None
        del self._open[key]
        return draws.result(self._k)

    def _sampling(self, request: Request, seed: int | None) -> Any:
        parameters, final_only = self._parameters
        common = {"flat_logprobs": True, "output_kind": final_only}
        if request.target_ids is not None:
            return parameters(**common, **_scoring(request.target_ids[-1], self._k))
        return parameters(
            **common,
            **_decoding(self._generate),
            seed=seed,
            max_tokens=request.max_new_tokens,
            logprobs=self._logprobs,
        )


@dataclass
class _Draws:
    """A request inside the engine: as many vLLM requests as it has draws, each with its seed."""

    request: Request
    seeds: tuple[int | None, ...]
    outputs: dict[int, Any] = field(default_factory=dict)

    def result(self, k: int) -> Result:
        """The request's result; an output that failed fails it."""
        key, target = self.request.key, self.request.target_ids
        ordered = [self.outputs[ordinal] for ordinal in range(len(self.seeds))]
        reasons = [output.outputs[0].finish_reason for output in ordered]
        if failed := next((r for r in reasons if r not in ("stop", "length")), None):
            return Result(key, [], f"the engine ended the request: {failed}")
        if target is not None:
            return Result(key, [_scored(ordered[0], target, k)])
        pairs = zip(ordered, self.seeds, strict=True)
        return Result(key, [_hypothesis(output.outputs[0], k, seed) for output, seed in pairs])


def _decoding(generate: Generate) -> dict[str, Any]:
    """What vLLM is told of greedy decoding and sampling; it defaults to nothing of its own."""
    told: dict[str, Any] = {
        "temperature": 0.0,
        "min_tokens": generate.min_new_tokens,
        "stop_token_ids": list(generate.stop_token_ids),
        "repetition_penalty": generate.repetition_penalty,
        # Detokenising every step is dear: only strings that stop need it.
        "detokenize": bool(generate.stop),
        "stop": list(generate.stop),
    }
    if generate.decoding == "sample":
        told["temperature"] = generate.temperature
        told |= {"top_p": generate.top_p, "top_k": generate.top_k, "min_p": generate.min_p}
    return told


def _scoring(last: int, k: int) -> dict[str, Any]:
    """A target is read as a prompt, its last token made to come: so it may fill the context."""
    told = {"temperature": 0.0, "max_tokens": 1, "detokenize": False}
    return told | {"allowed_token_ids": [last], "logprobs": k, "prompt_logprobs": k}


def _searches(
    options: EngineOptions, engine: Any, refusals: tuple[type[Exception], ...]
) -> Rollouts | None:
    """The beam searches of an engine that decodes so."""
    generate = options.generate
    if generate.decoding != "beam":
        return None
    rules = Rules.of(generate, _end_tokens(engine) | frozenset(generate.stop_token_ids))
    width = min(max(options.k, rules.row_width), int(engine.model_config.get_vocab_size()))
    sampling = functools.cache(functools.partial(_rollout, width, sorted(rules.ends)))
    capacity = int(engine.vllm_config.scheduler_config.max_num_seqs) // rules.width
    return Rollouts(Handle(engine, sampling, refusals), rules, options.k, capacity)


def _end_tokens(engine: Any) -> frozenset[int]:
    """What vLLM itself ends a request at: the tokenizer's end token, and the model's."""
    told = engine.model_config.try_get_generation_config().get("eos_token_id")
    of_model = told if isinstance(told, list) else [told]
    of_tokenizer = getattr(engine.get_tokenizer(), "eos_token_id", None)
    return frozenset(int(end) for end in (*of_model, of_tokenizer) if end is not None)


def _rollout(width: int, ends: list[int], max_tokens: int) -> Any:
    """A greedy request that tells each position's `width` most probable tokens as it goes."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=max_tokens,
        logprobs=width,
        flat_logprobs=True,
        stop_token_ids=ends,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _load(options: EngineOptions) -> Any:
    prepare_environment()
    try:
        from vllm import EngineArgs, LLMEngine
    except ImportError as error:
        remedy = f"vLLM is not installed: pip install 'seqkd[cpu]' or 'seqkd[gpu]' ({error})"
        raise EngineError("teacher.engine", "vllm", remedy) from None
    arguments: dict[str, Any] = {
        "model": options.model,
        "revision": options.revision,
        "dtype": options.dtype,
        "max_logprobs": max(options.k, DEFAULT_MAX_LOGPROBS),
        "max_num_seqs": min(options.window, MOST_RUNNING),
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if options.generate.decoding == "sample" and not _has_accelerator():
        # A prompt read in chunks winds its generator back; on a CPU none can (seen: 0.32).
        arguments["enable_chunked_prefill"] = False
    if options.generate.decoding == "beam":
        arguments |= _for_beams(options)
    refusals: tuple[type[Exception], ...] = (TypeError, *_refusals())
    try:
        return LLMEngine.from_engine_args(EngineArgs(**(arguments | (options.options or {}))))
    except refusals as error:
        reason = " ".join(str(error).split())[:300]
        raise EngineError("teacher", options.model, f"vLLM refuses it: {reason}") from None


def _for_beams(options: EngineOptions) -> dict[str, Any]:
    """Room for every beam of a source, rows of any width, and prefixes that are read once.

    The smallest blocks hit most; a CPU takes none below 32, a GPU has 16 by itself.
    """
    return {
        "max_logprobs": -1,
        "max_num_seqs": min(options.window * options.generate.beam_width, 2 * MOST_RUNNING),
        "enable_prefix_caching": True,
        **({} if _has_accelerator() else {"block_size": 32}),
    }


def prepare_environment() -> None:
    """Set what vLLM reads from the environment at import, where the user has not."""
    settings = QUIET if _has_accelerator() else QUIET | CPU_ENVIRONMENT
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _has_accelerator() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises for input it does not take: ValueError; newer ones have their own error."""
    import vllm.exceptions

    own = getattr(vllm.exceptions, "VLLMError", None)
    return (ValueError, own) if own else (ValueError,)


def take_arrays() -> None:
    """Take log-probabilities as arrays, where this vLLM lets us; else say so, and take lists."""
    if reason := _untakeable():
        told = f"log-probabilities are taken as lists, which is slower: {reason}"
        warnings.warn(told, RuntimeWarning, stacklevel=3)


def _untakeable() -> str | None:
    try:
        names = private_names()
    except (ImportError, AttributeError) as error:
        return " ".join(str(error).split())
    return take_over(names)


def private_names() -> Names:
    """What the array path is built on."""
    prepare_environment()
    import vllm
    from vllm.logprobs import FlatLogprobs
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.outputs import LogprobsLists, LogprobsTensors

    major, minor = vllm.__version_tuple__[:2]
    version = int(major), int(minor)
    return Names(version, LogprobsProcessor, FlatLogprobs, LogprobsLists, LogprobsTensors)


def _sampling_class() -> tuple[Any, Any]:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams, RequestOutputKind.FINAL_ONLY


def _hypothesis(output: Any, k: int, seed: int | None) -> Hypothesis:
    """Log-probabilities are rows of k + 1: the realised token first, then the top k."""
    if output.logprobs is None:
        told = np.asarray(output.token_ids, np.int32)
        return Hypothesis(told, None, output.finish_reason, seed=seed)
    ids, logprobs = rows(output.logprobs, k)
    return Hypothesis(
        token_ids=np.asarray(output.token_ids, np.int32),
        token_logprobs=logprobs[:, 0],
        finish_reason=output.finish_reason,
        topk_ids=ids[:, 1:] if k else None,
        topk_logprobs=logprobs[:, 1:] if k else None,
        seed=seed,
    )


def _scored(output: Any, target: list[int], k: int) -> Hypothesis:
    """The target's own rows: the last of the prompt's, which start at its second token, and one."""
    read, made = rows(output.prompt_logprobs, k), rows(output.outputs[0].logprobs, k)
    ids, logprobs = (np.concatenate(both)[-len(target) :] for both in zip(read, made, strict=True))
    return Hypothesis(
        token_ids=np.asarray(target, np.int32),
        token_logprobs=logprobs[:, 0],
        finish_reason="stop",
        topk_ids=ids[:, 1:] if k else None,
        topk_logprobs=logprobs[:, 1:] if k else None,
    )
