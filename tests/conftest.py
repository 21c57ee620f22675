"""Fixtures that every test may ask for."""

from tests.models import tiny_chat, tiny_llama, tiny_t5, tiny_tokenizer

__all__ = ["tiny_chat", "tiny_llama", "tiny_t5", "tiny_tokenizer"]
