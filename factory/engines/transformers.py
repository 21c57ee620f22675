"""Hugging Face transformers: any causal or encoder–decoder model, in batches of like length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from factory.engines.base import EngineOptions, Hypothesis, Request, Result
from factory.errors import EngineError

if TYPE_CHECKING:
    import torch

DEFAULT_BATCH = 32
# Positions scored at once: bounds the float32 copy of [positions, vocabulary].
SCORED_POSITIONS = 2048


class TransformersEngine:
    """Greedy decoding with `generate`, then one teacher-forced pass for the log-probabilities."""

    def __init__(self, options: EngineOptions) -> None:
        """Load the model onto the accelerator, if there is one.

        Raises:
            EngineError: transformers is not installed, or cannot load the model.
        """
        settings = dict(options.options or {})
        self._batch = int(str(settings.pop("batch_size", DEFAULT_BATCH)))
        self._model = _load(options, settings)
        self._k = options.k
        self._waiting: list[Request] = []
        config = self._model.config
        self.encoder_decoder = bool(config.is_encoder_decoder)
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        ends = self._model.generation_config.eos_token_id
        self._ends = ends if isinstance(ends, list) else [ends]
        pad = self._model.generation_config.pad_token_id
        self._pad = self._ends[0] if pad is None else pad

    @property
    def unfinished(self) -> int:
        """Requests submitted and not yet given back."""
        return len(self._waiting)

    def submit(self, request: Request) -> None:
        """Queue a request."""
        self._waiting.append(request)

    def step(self) -> list[Result]:
        """Decode one batch: the longest prompts that wait, which are of like length."""
        self._waiting.sort(key=lambda request: len(request.prompt_ids))
        batch = self._waiting[-self._batch :]
        del self._waiting[-self._batch :]
        targets = self._decode(batch) if batch else []
        return [
            Result(request.key, [hypothesis])
            for request, hypothesis in zip(batch, self._score(batch, targets), strict=True)
        ]

    def close(self) -> None:
        """Let the model go."""
        del self._model

    def _decode(self, batch: list[Request]) -> list[list[int]]:
        import torch
        from transformers import StoppingCriteriaList

        prompts, mask = self._padded([request.prompt_ids for request in batch], left=True)
        limits = torch.tensor([r.max_new_tokens for r in batch], device=prompts.device)
        start = 1 if self.encoder_decoder else prompts.shape[1]

        def reached(ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
            return ids.shape[1] - start >= limits

        with torch.inference_mode():
            out = self._model.generate(
                prompts,
                attention_mask=mask,
                do_sample=False,
                num_beams=1,
                max_new_tokens=int(limits.max()),
                pad_token_id=self._pad,
                stopping_criteria=StoppingCriteriaList([reached]),
            )
        return [
            self._cut(row[start:], request.max_new_tokens)
            for row, request in zip(out.tolist(), batch, strict=True)
        ]

    def _cut(self, ids: list[int], limit: int) -> list[int]:
        """The produced tokens alone: up to the end token, or to the row's own limit."""
        ended = next((i + 1 for i, token in enumerate(ids) if token in self._ends), limit)
        return ids[: min(ended, limit)]

    def _score(self, batch: list[Request], targets: list[list[int]]) -> list[Hypothesis]:
        import torch

        if not batch:
            return []
        with torch.inference_mode():
            logits, starts = self._logits(batch, targets)
            return [
                self._hypothesis(logits[row, start : start + len(target)], target)
                for row, (start, target) in enumerate(zip(starts, targets, strict=True))
            ]

    def _logits(
        self, batch: list[Request], targets: list[list[int]]
    ) -> tuple[torch.Tensor, list[int]]:
        """Raw logits [batch, length, vocabulary], and where each row's first token is told."""
        if not self.encoder_decoder:
            joined = [r.prompt_ids + t for r, t in zip(batch, targets, strict=True)]
            ids, mask = self._padded(joined, left=False)
            out = self._model(input_ids=ids, attention_mask=mask, use_cache=False)
            return out.logits, [len(request.prompt_ids) - 1 for request in batch]
        prompts, mask = self._padded([request.prompt_ids for request in batch], left=False)
        start = self._model.generation_config.decoder_start_token_id
        shifted, _ = self._padded([[start, *target[:-1]] for target in targets], left=False)
        out = self._model(
            input_ids=prompts, attention_mask=mask, decoder_input_ids=shifted, use_cache=False
        )
        return out.logits, [0] * len(batch)

    def _hypothesis(self, logits: torch.Tensor, target: list[int]) -> Hypothesis:
        import torch

        realised, ids, tops = [], [], []
        wanted = torch.tensor(target, device=logits.device)
        for first in range(0, len(target), SCORED_POSITIONS):
            chunk = slice(first, first + SCORED_POSITIONS)
            logprobs = logits[chunk].float().log_softmax(-1)
            top = logprobs.topk(self._k, dim=-1)
            realised.append(logprobs.gather(-1, wanted[chunk, None])[:, 0].cpu().numpy())
            ids.append(top.indices.to(torch.int32).cpu().numpy())
            tops.append(top.values.cpu().numpy())
        return Hypothesis(
            token_ids=np.asarray(target, np.int32),
            token_logprobs=np.concatenate(realised),
            finish_reason="stop" if target[-1] in self._ends else "length",
            topk_ids=np.concatenate(ids) if self._k else None,
            topk_logprobs=np.concatenate(tops) if self._k else None,
        )

    def _padded(self, rows: list[list[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 [rows, longest] ids and attention mask, padded on one side."""
        import torch

        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._pad)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            ids[index, place] = torch.tensor(row)
            mask[index, place] = 1
        return ids.to(self._model.device), mask.to(self._model.device)


def _load(options: EngineOptions, settings: dict[str, object]) -> Any:
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    except ImportError as error:
        remedy = f"transformers is not installed: pip install 'seqkd[train]' ({error})"
        raise EngineError("teacher.engine", "transformers", remedy) from None
    if settings:
        unknown = ", ".join(sorted(settings))
        raise EngineError("teacher.options", unknown, "engine transformers takes batch_size alone")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        config = AutoConfig.from_pretrained(options.model, revision=options.revision)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = kind.from_pretrained(
            options.model,
            revision=options.revision,
            dtype=getattr(torch, options.dtype),
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise EngineError("teacher.model", options.model, f"cannot be loaded: {reason}") from None
    return model.to(device).eval()
