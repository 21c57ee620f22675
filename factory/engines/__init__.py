"""Engines by name: what each can do, and how it is opened. None is imported before it is opened."""

from __future__ import annotations

from dataclasses import dataclass

from factory.engines.base import Engine, EngineOptions, Hypothesis, Request, Result, decode
from factory.errors import EngineError, nearest

__all__ = [
    "ABILITIES",
    "Ability",
    "Engine",
    "EngineOptions",
    "Hypothesis",
    "Request",
    "Result",
    "decode",
    "open_engine",
]


@dataclass(frozen=True, slots=True)
class Ability:
    """What an engine can do, known without loading it.

    Attributes:
        decodings: the values of `generate.decoding` it takes.
        lacks: keys of `generate` it has nothing for, in any decoding.
        beam_lacks: the same, in beam search alone.
        decoder_lacks: the same, for models without an encoder alone.
        captures: whether hypotheses come with distributions.
        draws: whether it sees full distributions, and draws from them.
        scorer: the engine that scores given targets in its place.
        encoder_decoder: whether it runs encoder–decoders.
    """

    decodings: tuple[str, ...]
    lacks: frozenset[str]
    beam_lacks: frozenset[str]
    decoder_lacks: frozenset[str]
    captures: bool
    draws: bool
    scorer: str
    encoder_decoder: bool

    def lacking(self, decoding: str, encoder_decoder: bool) -> frozenset[str]:
        """Keys of `generate` it has nothing for in that decoding of such a model."""
        of_beams = self.beam_lacks if decoding == "beam" else frozenset()
        return self.lacks | of_beams | (frozenset() if encoder_decoder else self.decoder_lacks)


ABILITIES = {
    "vllm": Ability(
        decodings=("greedy", "beam", "sample"),
        lacks=frozenset({"epsilon", "no_repeat_ngram_size", "first_token"}),
        beam_lacks=frozenset({"stop", "repetition_penalty"}),
        decoder_lacks=frozenset(),
        captures=True,
        draws=False,
        scorer="vllm",
        encoder_decoder=False,
    ),
    "transformers": Ability(
        decodings=("greedy", "beam", "sample"),
        lacks=frozenset(),
        beam_lacks=frozenset(),
        decoder_lacks=frozenset(),
        captures=True,
        draws=True,
        scorer="transformers",
        encoder_decoder=True,
    ),
    "ctranslate2": Ability(
        decodings=("greedy", "beam"),
        lacks=frozenset({"stop", "reasoning"}),
        beam_lacks=frozenset(),
        # A decoder's prompt is part of its output: others penalise what repeats it, this would not.
        decoder_lacks=frozenset({"repetition_penalty", "no_repeat_ngram_size", "first_token"}),
        captures=False,
        draws=False,
        scorer="transformers",
        encoder_decoder=True,
    ),
}


def open_engine(name: str, options: EngineOptions) -> Engine:
    """Load a model into the engine of that name.

    Raises:
        EngineError: the engine is not known or not installed, or refuses the model.
    """
    if name == "vllm":
        from factory.engines.vllm import VllmEngine

        return VllmEngine(options)
    if name == "transformers":
        from factory.engines.transformers import TransformersEngine

        return TransformersEngine(options)
    if name == "ctranslate2":
        from factory.engines.ctranslate2 import CTranslate2Engine

        return CTranslate2Engine(options)
    raise EngineError("teacher.engine", name, nearest(name, ABILITIES))
