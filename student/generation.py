"""How a delivered model generates by itself: `generation_config.json`, as it was evaluated."""

from __future__ import annotations

from typing import Any

from factory.decoding import Generate
from factory.engines.decoder import OF_THE_MODEL


def generation_config(model: Any, generate: Generate, first: int | None) -> Any:
    """What `model.generate(**inputs)` needs to be told once to decode as `generate` says.

    Limits that depend on the prompt's length become their cap. `first`, the id of a forced first
    token, is told of encoder–decoders alone: others have it at the end of their prompt.
    """
    from transformers import GenerationConfig

    known = {name: getattr(model.generation_config, name) for name in OF_THE_MODEL}
    ends = list(dict.fromkeys([*listed(known["eos_token_id"]), *generate.stop_token_ids]))
    most = generate.max_new_tokens
    told = {
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "pad_token_id": ends[0] if known["pad_token_id"] is None else known["pad_token_id"],
        "max_new_tokens": most if isinstance(most, int) else most.cap,
        "do_sample": False,
        "num_beams": 1,
        "min_new_tokens": generate.min_new_tokens or None,
        "repetition_penalty": generate.repetition_penalty,
        "no_repeat_ngram_size": generate.no_repeat_ngram_size,
        "stop_strings": list(generate.stop) or None,
    }
    if first is not None and model.config.is_encoder_decoder:
        told["forced_bos_token_id"] = first
    return GenerationConfig(**known | told | _beams(generate))


def listed(ids: int | list[int] | None) -> list[int]:
    """One id, several or none, as a list."""
    return [] if ids is None else list(ids) if isinstance(ids, list) else [ids]


def _beams(generate: Generate) -> dict[str, Any]:
    if generate.decoding != "beam" or generate.beam_width == 1:
        return {}
    return {
        "num_beams": generate.beam_width,
        "length_penalty": generate.length_penalty,
        "early_stopping": generate.early_stopping,
    }
