"""Fixtures that every test may ask for."""

from __future__ import annotations

import os

import torch

from tests.models import chat_tokenizer, tiny_chat, tiny_llama, tiny_t5, tiny_tokenizer

__all__ = ["chat_tokenizer", "tiny_chat", "tiny_llama", "tiny_t5", "tiny_tokenizer"]


def pytest_configure() -> None:
    """One thread a process: for tiny models more only wait for each other, ten times as long."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
