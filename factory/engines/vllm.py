"""vLLM, driven through its own engine loop. The one place that imports it.

Run with vLLM 0.32 (CPU) alone so far.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from factory.engines.base import EngineOptions, Hypothesis, Request, Result
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


class VllmEngine:
    """Continuous batching: a request joins and leaves the running batch on its own."""

    encoder_decoder = False

    def __init__(self, options: EngineOptions) -> None:
        """Load the model.

        Raises:
            EngineError: vLLM is not installed, or refuses the model or an option.
        """
        self._k = options.k
        self._refused: list[Result] = []
        self._engine = _load(options)
        self._parameters = _sampling_class()
        self._refusals = _refusals()
        self.context: int | None = int(self._engine.model_config.max_model_len)

    @property
    def unfinished(self) -> int:
        """Requests submitted and not yet given back."""
        return int(self._engine.get_num_unfinished_requests()) + len(self._refused)

    def submit(self, request: Request) -> None:
        """Queue a request; what vLLM refuses comes back with the next step."""
        prompt = {"prompt_token_ids": request.prompt_ids}
        try:
            self._engine.add_request(request.key, prompt, self._sampling(request.max_new_tokens))
        except self._refusals as error:
            self._refused.append(Result(request.key, [], " ".join(str(error).split())))

    def step(self) -> list[Result]:
        """One pass of the engine: a token for every running request."""
        refused, self._refused = self._refused, []
        if not self._engine.has_unfinished_requests():
            return refused
        return refused + [_result(o, self._k) for o in self._engine.step() if o.finished]

    def close(self) -> None:
        """Shut the engine's core down, where it runs beside us."""
        self._engine.engine_core.shutdown()

    def _sampling(self, max_new_tokens: int) -> Any:
        parameters, final_only = self._parameters
        return parameters(
            temperature=0.0,
            max_tokens=max_new_tokens,
            logprobs=self._k,
            flat_logprobs=True,
            detokenize=False,
            output_kind=final_only,
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
        "max_num_seqs": min(options.window, 256),
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    refusals: tuple[type[Exception], ...] = (TypeError, *_refusals())
    try:
        return LLMEngine.from_engine_args(EngineArgs(**(arguments | (options.options or {}))))
    except refusals as error:
        reason = " ".join(str(error).split())[:300]
        raise EngineError("teacher", options.model, f"vLLM refuses it: {reason}") from None


def prepare_environment() -> None:
    """Set what vLLM reads from the environment at import, where the user has not."""
    import torch

    settings = QUIET if torch.cuda.is_available() else QUIET | CPU_ENVIRONMENT
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises for input it does not take: ValueError; newer ones have their own error."""
    import vllm.exceptions

    own = getattr(vllm.exceptions, "VLLMError", None)
    return (ValueError, own) if own else (ValueError,)


def _sampling_class() -> tuple[Any, Any]:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams, RequestOutputKind.FINAL_ONLY


def _result(output: Any, k: int) -> Result:
    failed = [o.finish_reason for o in output.outputs if o.finish_reason not in ("stop", "length")]
    if failed:
        return Result(output.request_id, [], f"the engine ended the request: {failed[0]}")
    return Result(output.request_id, [_hypothesis(o, k) for o in output.outputs])


def _hypothesis(output: Any, k: int) -> Hypothesis:
    """Flat log-probabilities are rows of k + 1: the realised token first, then the top k."""
    flat = output.logprobs
    ids = np.asarray(flat.token_ids, np.int32).reshape(-1, k + 1)
    logprobs = np.asarray(flat.logprobs, np.float32).reshape(-1, k + 1)
    return Hypothesis(
        token_ids=np.asarray(output.token_ids, np.int32),
        token_logprobs=logprobs[:, 0],
        finish_reason=output.finish_reason,
        topk_ids=ids[:, 1:] if k else None,
        topk_logprobs=logprobs[:, 1:] if k else None,
    )
