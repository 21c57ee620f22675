"""Which engine decodes held-out sources: what one cannot do, and the rule behind `auto`.

The rule is a function of the model, the decoding, the number of sources and what is installed.
Its numbers are measured: benchmarks/heldout.py.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from factory.decoding import Generate
from factory.engines import ABILITIES
from factory.models import ModelFacts, head_size_of

# Of vLLM's attention on CPUs, 0.32.
NARROWEST_HEAD = 32
# Kinds whose conversions the tests hold equal to transformers, token by token.
CONVERTED = frozenset({"bart", "gpt2", "llama", "m2m_100", "marian", "mbart", "t5"})
# On a CPU, the sources from which a faster decoding makes up for the conversion.
WORTH_CONVERTING = {"greedy": 300, "beam": 60}


@dataclass(frozen=True, slots=True)
class Kind:
    """What of a model decides who can run it. `head_size`: see `ModelFacts`."""

    model_type: str
    encoder_decoder: bool
    head_size: int | None = None

    @classmethod
    def of_facts(cls, facts: ModelFacts) -> Kind:
        """The kind of a model that there is."""
        return cls(facts.model_type, facts.encoder_decoder, facts.head_size)

    @classmethod
    def of_config(cls, config: Any) -> Kind:
        """The kind of a model that is yet to be, by its Hugging Face configuration."""
        head = head_size_of(config.get_text_config().to_dict())
        return cls(config.model_type, bool(config.is_encoder_decoder), head)


def installed() -> frozenset[str]:
    """The engines whose library is here; none is imported."""
    return frozenset(name for name in ABILITIES if find_spec(name) is not None)


def obstacle(engine: str, kind: Kind, generate: Generate, *, cuda: bool) -> str | None:
    """Why an engine cannot decode such a model so: what the model is; None if it can.

    Args:
        engine: a key of `ABILITIES`.
        kind: the model's.
        generate: the decoding; keys that are set and that the engine lacks are in the way.
        cuda: whether there is an accelerator.
    """
    ability, decoding = ABILITIES[engine], generate.decoding
    if kind.encoder_decoder and not ability.encoder_decoder:
        return f"is an encoder–decoder ({kind.model_type})"
    if engine == "vllm" and not cuda and (kind.head_size or NARROWEST_HEAD) < NARROWEST_HEAD:
        return (
            f"has attention heads of {kind.head_size}, and on a CPU they must be "
            f"{NARROWEST_HEAD} wide or more"
        )
    if decoding not in ability.decodings:
        return f"is to be decoded by {decoding}, and there is {', '.join(ability.decodings)}"
    lacking = ability.lacking(decoding, kind.encoder_decoder) & generate.model_fields_set
    if lacking:
        return f"is to be decoded with {min(lacking)}, which there is not in {decoding} decoding"
    return None


def choose(
    kind: Kind,
    dtype: str,
    generate: Generate,
    sources: int,
    *,
    cuda: bool,
    beside_training: bool = False,
    there: Collection[str] | None = None,
) -> str:
    """The engine that `auto` takes.

    With an accelerator vLLM, for every model and decoding that it can do. On a CPU CTranslate2, for
    the kinds of `CONVERTED` in float32 and so many sources that converting pays. Otherwise
    transformers, which can do everything.

    Args:
        kind: the model's.
        dtype: what it is computed in.
        generate: the decoding.
        sources: how many are decoded.
        cuda: whether there is an accelerator.
        beside_training: whether it decodes in a trainer's process, where vLLM must not be.
        there: the engines installed; None: look.
    """
    there = installed() if there is None else there
    can = {name for name in there if obstacle(name, kind, generate, cuda=cuda) is None}
    if cuda:
        return "vllm" if "vllm" in can and not beside_training else "transformers"
    pays = sources >= WORTH_CONVERTING.get(generate.decoding, sources)
    same = kind.model_type in CONVERTED and dtype == "float32" and not _beams_apart(generate)
    return "ctranslate2" if "ctranslate2" in can and pays and same else "transformers"


def _beams_apart(generate: Generate) -> bool:
    """Whether CTranslate2 would search by other scores: those after penalties."""
    penalised = generate.repetition_penalty != 1 or generate.no_repeat_ngram_size > 0
    return generate.decoding == "beam" and (penalised or generate.min_new_tokens > 0)
