"""CTranslate2: fast decoding of encoder–decoders and of decoders that it knows. Its one door.

Run with CTranslate2 4.8. Where it differs from Hugging Face's `generate`:

- `early_stopping: true` is patience 1 (Kasai et al. 2022, arXiv 2204.05424), the same search: it
  ends when as many hypotheses are finished as the beam is wide. `false` and `never` have no equal;
  nearest are patience 2 and 4. On 500 real sentences, beam 4, the best hypothesis was the same for
  100 %, 99.2 % and 99.8 %, all four of them for 100 %, 83 % and 99.8 %. Nothing brings `false`
  nearer: it ends where the best unfinished is worse than the worst finished so far.
- With penalties its beams are scored by the distribution after the penalties, made to sum to one.
  The log-probabilities given back are of the model's own distribution, as everywhere.
- Marian's padding, which is never produced, has no probability.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from factory.decoding import Generate
from factory.engines.base import EngineOptions, Hypothesis, Request, Result
from factory.engines.conversion import Converted, converted
from factory.errors import EngineError
from factory.models import ModelFacts, model_facts
from factory.prompting.tokenizing import first_token_id, load_tokenizer

COMPUTE_TYPES = (
    "float32", "float16", "bfloat16",
    "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16",
)  # fmt: skip
PATIENCE = {True: 1.0, False: 2.0, "never": 4.0}
# Mean difference of log-probabilities from the original's, in nats, over the probe: float32, other.
PRECISE, ROUNDED = 0.01, 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What `teacher.options` may hold.

    Attributes:
        compute_type: how weights are stored and computed with; the teacher's dtype if not told.
        max_batch_tokens: of a batch's prompts, padding included.
        inter_threads: batches decoded at the same time.
        intra_threads: cores for each of them; 0 leaves it to CTranslate2.
    """

    compute_type: str
    max_batch_tokens: int = 2048
    inter_threads: int = 1
    intra_threads: int = 0


@dataclass(frozen=True, slots=True)
class _Batch:
    """Requests of one kind inside CTranslate2, with the promise of a result for each."""

    requests: list[Request]
    promises: list[Any]


class CTranslate2Engine:
    """Batches by prompt tokens, of requests with the same limit, decoded while we do other things.

    What a row becomes does not depend on the rows beside it.
    """

    def __init__(self, options: EngineOptions) -> None:
        """Convert the model, unless the cache has it, and load it.

        Raises:
            EngineError: CTranslate2 is not installed, or cannot run the model, a decoding or an
                option.
            ManifestError: there is no such model.
        """
        library = _library()
        self._generate = options.generate
        self._settings = settings = _settings(library, options)
        facts = model_facts(options.model, options.revision, "teacher.model")
        self.context: int | None = facts.context
        self.encoder_decoder = facts.encoder_decoder
        self._waiting: list[Request] = []
        self._refused: list[Result] = []
        self._running: deque[_Batch] = deque()
        self._scratch = None if options.cache else tempfile.TemporaryDirectory()
        cache = Path(options.cache or self._scratch.name)  # type: ignore[union-attr]
        copy = _converted(library, facts, settings, cache)
        self._names, self._ends = copy.names, {*copy.end_ids, *options.generate.stop_token_ids}
        self._ids = {name: token for token, name in enumerate(copy.names)}
        self._first = self._first_id(options, copy)
        self._model = _load(library, facts, settings, copy)
        self._decoding = self._decoding_options()
        self._sums_told = self._first is None and _unchanged(options.generate, self._model)
        self._scores_anew = options.logprobs and not self._sums_told
        self._check(copy)

    @property
    def unfinished(self) -> int:
        """Requests submitted and not yet given back."""
        running = sum(len(batch.requests) for batch in self._running)
        return len(self._waiting) + len(self._refused) + running

    def submit(self, request: Request) -> None:
        """Queue a request; one with an id that the model does not have comes back refused."""
        known = len(self._names)
        ids = [*request.prompt_ids, *(request.target_ids or ())]
        if beyond := [token for token in ids if not 0 <= token < known]:
            error = f"token id {beyond[0]} is beyond the model's vocabulary of {known}"
            self._refused.append(Result(request.key, [], error))
        else:
            self._waiting.append(request)

    def step(self) -> list[Result]:
        """Start what waits, and wait for the oldest batch inside."""
        refused, self._refused = self._refused, []
        while self._waiting and len(self._running) <= self._settings.inter_threads:
            self._start(self._oldest_kind())
        return refused + (self._finish(self._running.popleft()) if self._running else [])

    def close(self) -> None:
        """Give back the memory, and the converted model where it was for this engine alone."""
        self._model.unload_model()
        if self._scratch:
            self._scratch.cleanup()

    def _oldest_kind(self) -> list[Request]:
        """Take out of the queue all that may share a batch with the oldest, longest first.

        The oldest decides, so that a rare limit does not wait for ever.
        """
        kind = _kind(self._waiting[0])
        alike = [request for request in self._waiting if _kind(request) == kind]
        self._waiting = [request for request in self._waiting if _kind(request) != kind]
        return sorted(alike, key=_length, reverse=True)

    def _start(self, requests: list[Request]) -> None:
        """Hand requests to CTranslate2 in batches of at most `max_batch_tokens`."""
        while requests:
            size = max(1, self._settings.max_batch_tokens // _length(requests[0]))
            batch, requests = requests[:size], requests[size:]
            if batch[0].target_ids is None:
                promises = self._decode(batch)
            else:
                promises = self._score([(r.prompt_ids, r.target_ids or []) for r in batch])
            self._running.append(_Batch(batch, promises))

    def _finish(self, batch: _Batch) -> list[Result]:
        outputs = [_await(promise) for promise in batch.promises]
        if batch.requests[0].target_ids is not None:
            pairs = zip(batch.requests, outputs, strict=True)
            return [Result(r.key, [self._scored(r.target_ids or [], out)]) for r, out in pairs]
        decoded = [self._hypotheses(output) for output in outputs]
        if self._scores_anew:
            decoded = self._with_logprobs(batch.requests, decoded)
        pairs_ = zip(batch.requests, decoded, strict=True)
        return [Result(request.key, hypotheses) for request, hypotheses in pairs_]

    def _decode(self, batch: list[Request]) -> list[Any]:
        """Promises of translations (hypotheses with scores), one for each request."""
        prompts = [self._named(request.prompt_ids) for request in batch]
        limit = batch[0].max_new_tokens
        least = min(self._generate.min_new_tokens, limit)
        common = self._decoding | {"asynchronous": True}
        if not self.encoder_decoder:
            lengths = {"max_length": limit, "min_length": least}
            told = self._model.generate_batch(
                prompts, include_prompt_in_result=False, **common, **lengths
            )
        else:
            forced = None if self._first is None else [self._named([self._first])] * len(batch)
            lengths = {"max_decoding_length": limit, "min_decoding_length": least}
            told = self._model.translate_batch(
                prompts, target_prefix=forced, max_input_length=0, **common, **lengths
            )
        return list(told)

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Any]:
        """Promises of log-probabilities of targets after prompts, told for `_logprobs`."""
        common = {
            "max_input_length": 0,
            "max_batch_size": self._settings.max_batch_tokens,
            "batch_type": "tokens",
            "asynchronous": True,
        }
        if not self.encoder_decoder:
            joined = [self._named([*prompt, *target]) for prompt, target in pairs]
            return list(self._model.score_batch(joined, **common))
        prompts = [self._named(prompt) for prompt, _ in pairs]
        targets = [self._named(target) for _, target in pairs]
        return list(self._model.score_batch(prompts, targets, **common))

    def _logprobs(self, output: Any, length: int) -> npt.NDArray[np.float32]:
        """float32 [length]. A translator also scores an end token after the target: cut off.

        A decoder has the prompt's tokens, less its first, before the target's.
        """
        told = np.asarray(output.log_probs, np.float32)
        return told[:length] if self.encoder_decoder else told[-length:]

    def _scored(self, target: list[int], output: Any) -> Hypothesis:
        logprobs = self._logprobs(output, len(target))
        return Hypothesis(np.asarray(target, np.int32), logprobs, self._reason(target))

    def _hypotheses(self, output: Any) -> list[Hypothesis]:
        """Told sums are scores times the length that CTranslate2 divided them by."""
        sequences = output.hypotheses if self.encoder_decoder else output.sequences
        found = []
        for names, score in zip(sequences, output.scores, strict=True):
            ids = [self._ids[name] for name in names]
            told = score * len(ids) ** self._decoding["length_penalty"] if self._sums_told else None
            reason = self._reason(ids)
            found.append(Hypothesis(np.asarray(ids, np.int32), None, reason, told_sum=told))
        return found

    def _with_logprobs(
        self, requests: list[Request], decoded: list[list[Hypothesis]]
    ) -> list[list[Hypothesis]]:
        """Score what was decoded, where its scores are not the model's own log-probabilities."""
        pairs = [
            (request.prompt_ids, hypothesis.token_ids.tolist())
            for request, hypotheses in zip(requests, decoded, strict=True)
            for hypothesis in hypotheses
        ]
        outputs = zip(pairs, self._score(pairs), strict=True)
        scored = iter([self._scored(target, _await(promise)) for (_, target), promise in outputs])
        return [[next(scored) for _ in hypotheses] for hypotheses in decoded]

    def _reason(self, ids: list[int]) -> str:
        return "stop" if ids[-1] in self._ends else "length"

    def _named(self, ids: list[int]) -> list[str]:
        return [self._names[token] for token in ids]

    def _first_id(self, options: EngineOptions, copy: Converted) -> int | None:
        """The first token to force: the manifest's, or else the model's own."""
        if not self.encoder_decoder:
            return None
        if options.generate.first_token is None:
            return copy.forced_id
        tokenizer = load_tokenizer(options.model, options.revision)
        return first_token_id(tokenizer, options.generate.first_token)

    def _decoding_options(self) -> dict[str, Any]:
        """What CTranslate2 is told of greedy decoding and beams; 0 leaves a greedy score a sum."""
        generate = self._generate
        told: dict[str, Any] = {
            "beam_size": 1,
            "length_penalty": 0.0,
            "return_scores": True,
            "return_end_token": True,
            "end_token": sorted(self._ends),
            "repetition_penalty": generate.repetition_penalty,
            "no_repeat_ngram_size": generate.no_repeat_ngram_size,
        }
        if generate.decoding == "beam":
            told |= {
                "beam_size": generate.beam_width,
                "num_hypotheses": generate.num_return,
                "length_penalty": generate.length_penalty,
                "patience": PATIENCE[generate.early_stopping],
            }
        return told

    def _check(self, copy: Converted) -> None:
        """Compare the copy with what the original said of a target when it was converted."""
        probe = copy.probe
        [promise] = self._score([(probe.source, probe.target)])
        told = self._logprobs(_await(promise), len(probe.target))
        precise = probe.precise and self._model.compute_type == "float32"
        difference = float(np.abs(told - np.asarray(probe.logprobs)).mean())
        if not difference <= (PRECISE if precise else ROUNDED):
            raise EngineError(
                "teacher.model",
                copy.folder.name,
                f"CTranslate2 computes another model than transformers: log-probabilities differ "
                f"by {difference:.3g} on average; use engine transformers or vllm",
            )


def convert(model: str, kind: str, cache: Path) -> Converted:
    """A model in a folder of `cache`, in CTranslate2's format, its weights stored as `kind`.

    Raises:
        EngineError: CTranslate2 is not installed, or cannot convert the model.
    """
    library = _library()
    facts = model_facts(model, None, "teacher.model")
    return _converted(library, facts, Settings(kind), cache)


def open_folder(folder: Path, encoder_decoder: bool) -> Any:
    """CTranslate2's own Translator or Generator, computing with weights as they are stored."""
    library = _library()
    kind = library.Translator if encoder_decoder else library.Generator
    return kind(str(folder), device=_device(library))


def _library() -> Any:
    try:
        import ctranslate2
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        remedy = f"CTranslate2 is not installed: pip install 'seqkd[seq2seq]' ({error})"
        raise EngineError("teacher.engine", "ctranslate2", remedy) from None
    return ctranslate2


def _settings(library: Any, options: EngineOptions) -> Settings:
    """Read `teacher.options`."""
    given = {"compute_type": options.dtype} | (options.options or {})
    known = [field.name for field in fields(Settings)]
    if unknown := ", ".join(sorted(set(given) - set(known))):
        remedy = f"engine ctranslate2 takes {', '.join(known[:-1])} and {known[-1]}"
        raise EngineError("teacher.options", unknown, remedy)
    for name in known[1:]:
        value, least = given.get(name, 1), int(name != "intra_threads")
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            remedy = f"must be a whole number, {least} or more"
            raise EngineError(f"teacher.options.{name}", value, remedy)
    possible = library.get_supported_compute_types(_device(library))
    if given["compute_type"] not in possible:
        remedy = f"is not to be had on this machine: set one of {', '.join(sorted(possible))}"
        raise EngineError("teacher.options.compute_type", given["compute_type"], remedy)
    return Settings(**given)  # type: ignore[arg-type]


def _converted(library: Any, facts: ModelFacts, settings: Settings, cache: Path) -> Converted:
    from ctranslate2.converters import TransformersConverter

    version = library.__version__
    return converted(TransformersConverter, version, facts, settings.compute_type, cache)


def _load(library: Any, facts: ModelFacts, settings: Settings, copy: Converted) -> Any:
    kind = library.Translator if facts.encoder_decoder else library.Generator
    try:
        return kind(
            str(copy.folder),
            device=_device(library),
            compute_type=settings.compute_type,
            inter_threads=settings.inter_threads,
            intra_threads=settings.intra_threads,
            max_queued_batches=-1,
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EngineError(
            "teacher.model", facts.model, f"CTranslate2 refuses it: {reason}"
        ) from None


def _device(library: Any) -> str:
    return "cuda" if library.get_cuda_device_count() else "cpu"


def _unchanged(generate: Generate, model: Any) -> bool:
    """Whether a score is the model's own: not after penalties, and not summed in half precision."""
    penalised = generate.repetition_penalty != 1 or generate.no_repeat_ngram_size
    return not (penalised or generate.min_new_tokens or "float16" in model.compute_type)


def _await(promise: Any) -> Any:
    try:
        return promise.result()
    except RuntimeError as error:
        remedy = f"CTranslate2 failed on a batch: {' '.join(str(error).split())[:200]}"
        raise EngineError("teacher.options.max_batch_tokens", None, remedy) from None


def _kind(request: Request) -> int | None:
    """Requests share a batch if all decode to one limit, or all score."""
    return None if request.target_ids is not None else request.max_new_tokens


def _length(request: Request) -> int:
    return len(request.prompt_ids) + len(request.target_ids or ())
