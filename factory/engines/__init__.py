"""Engines by name. Each is imported when it is opened, not before."""

from __future__ import annotations

from factory.engines.base import Engine, EngineOptions, Hypothesis, Request, Result, decode
from factory.errors import EngineError, nearest

__all__ = [
    "DECODINGS",
    "Engine",
    "EngineOptions",
    "Hypothesis",
    "Request",
    "Result",
    "decode",
    "open_engine",
]

DECODINGS = {"vllm": ("greedy",), "transformers": ("greedy",)}


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
    raise EngineError("teacher.engine", name, nearest(name, DECODINGS))
