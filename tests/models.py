"""Tiny real models and corpora, made once a session: what the tests run instead of mocks."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from factory.manifest import TrainTokenizer
from student.tokenizers import train_tokenizer

Pair = tuple[str, str]
CONTEXT = 64
IGNORED = -100
TEMPLATE = "<s>{source}<sep>"
CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}<sep>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
LEXICON = (
    {"the": "le", "a": "un", "this": "ce"},
    {"cat": "chat", "dog": "chien", "horse": "cheval", "boy": "garçon", "king": "roi"},
    {"sees": "voit", "hears": "entend", "follows": "suit", "loves": "aime"},
    {"every": "chaque", "some": "quelque", "no": "aucun"},
    {"tree": "arbre", "house": "logis", "river": "fleuve", "garden": "jardin", "road": "chemin"},
    {"": "", "today": "aujourd'hui", "now and then": "de temps en temps"},
)
SPLIT_SIZES = {"train": 60, "validation": 10, "test": 10}


def pairs(count: int, first: int = 0) -> list[Pair]:
    """`count` distinct sentence pairs, always the same, from place `first` of 2,700."""
    every = list(itertools.product(*(words.items() for words in LEXICON)))
    random.Random(17).shuffle(every)
    chosen = every[first : first + count]
    assert len(chosen) == count, f"there are {len(every)} sentences"
    return [(_sentence(s for s, _ in words), _sentence(t for _, t in words)) for words in chosen]


def _sentence(words: Iterable[str]) -> str:
    return " ".join(filter(None, words))


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    """Write a text file, a line an item."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_corpus(folder: Path, **sizes: int) -> dict[str, Any]:
    """Write disjoint splits as line-aligned files; returns the manifest's `data` section."""
    data: dict[str, Any] = {}
    first = 0
    for split, size in (SPLIT_SIZES | sizes).items():
        if not size:
            continue
        rows = pairs(size, first)
        first += size
        source = write_lines(folder / f"{split}.en", [s for s, _ in rows])
        data[split] = {"source": str(source)}
        if split != "unlabeled":
            target = write_lines(folder / f"{split}.fr", [t for _, t in rows])
            data[split]["target"] = str(target)
    return data


def manifest_tree(folder: Path, teacher: Path, **sections: Any) -> dict[str, Any]:
    """A manifest, as a tree, of every step over a small corpus; `sections` replace its own."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "prompt": {"template": TEMPLATE},
        "teacher": {"model": str(teacher), "engine": "transformers"},
        "generate": {"max_new_tokens": 16, "shard_size": 16, "window": 32},
        "logits": {"capture": "top_k", "k": 4},
        "student": {
            "init": {"from_teacher": {"layers": 1}},
            "stages": [
                {
                    "name": "pseudolabel",
                    "data": "pseudolabels",
                    "objective": {"ce": 0.5, "forward_kl": 0.5},
                    "learning_rate": 1e-3,
                    "batch_tokens": 512,
                },
                {"name": "gold", "data": "gold", "learning_rate": 1e-3, "batch_tokens": 512},
            ],
        },
        "evaluate": {"folds": 2},
    }
    if "data" not in sections:
        tree["data"] = write_corpus(folder)
    return tree | sections


def write_manifest_file(path: Path, tree: dict[str, Any]) -> Path:
    """Write a tree as a manifest; JSON is YAML."""
    path.write_text(json.dumps(tree, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with <pad> <s> </s> <sep>; decoding gives the text back byte for byte."""
    texts = [text for pair in pairs(200) for text in pair]
    return train_tokenizer(texts, TrainTokenizer(vocab_size=400))


@pytest.fixture(scope="session")
def tiny_llama(tiny_tokenizer, tmp_path_factory) -> Path:
    """A folder: two Llama layers with tied embeddings, taught for a moment to translate.

    Its outputs are 5 to 10 tokens and the end token, so that a limit of 8 cuts some of them. Heads
    are 32 wide, the least that vLLM's CPU attention takes.
    """
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **_token_ids(tiny_tokenizer),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(17)
        model = LlamaForCausalLM(config)
        _teach(model, _causal_batch(tiny_tokenizer, pairs(200)), steps=120)
    return _save(model, tiny_tokenizer, tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def tiny_t5(tiny_tokenizer, tmp_path_factory) -> Path:
    """A folder: an encoder–decoder of two and two layers, taught like the Llama."""
    config = T5Config(
        vocab_size=len(tiny_tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=tiny_tokenizer.pad_token_id,
        **_token_ids(tiny_tokenizer),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(17)
        model = T5ForConditionalGeneration(config)
        _teach(model, _seq2seq_batch(tiny_tokenizer, pairs(200)), steps=60)
    return _save(model, tiny_tokenizer, tmp_path_factory.mktemp("tiny-t5"))


@pytest.fixture(scope="session")
def tiny_chat(tiny_llama, tmp_path_factory) -> Path:
    """The Llama's folder, with a tokenizer that has a chat template."""
    folder = tmp_path_factory.mktemp("tiny-chat")
    model = LlamaForCausalLM.from_pretrained(tiny_llama)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_llama)
    tokenizer.chat_template = CHAT_TEMPLATE
    return _save(model, tokenizer, folder)


def _token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    }


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _causal_batch(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Pair]) -> dict[str, Any]:
    prompts = [_ids(tokenizer, TEMPLATE.format(source=source)) for source, _ in rows]
    targets = [[*_ids(tokenizer, target), tokenizer.eos_token_id] for _, target in rows]
    joined = [p + t for p, t in zip(prompts, targets, strict=True)]
    labels = [[IGNORED] * len(p) + t for p, t in zip(prompts, targets, strict=True)]
    return {
        "input_ids": _padded(joined, tokenizer.pad_token_id),
        "attention_mask": _padded([[1] * len(row) for row in joined], 0),
        "labels": _padded(labels, IGNORED),
    }


def _seq2seq_batch(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Pair]) -> dict[str, Any]:
    prompts = [_ids(tokenizer, TEMPLATE.format(source=source)) for source, _ in rows]
    targets = [[*_ids(tokenizer, target), tokenizer.eos_token_id] for _, target in rows]
    return {
        "input_ids": _padded(prompts, tokenizer.pad_token_id),
        "attention_mask": _padded([[1] * len(row) for row in prompts], 0),
        "labels": _padded(targets, IGNORED),
    }


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def _teach(model: Any, batch: dict[str, torch.Tensor], steps: int) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    size = 50
    for step in range(steps):
        first = step * size % len(batch["input_ids"])
        loss = model(**{name: rows[first : first + size] for name, rows in batch.items()}).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()


def _save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    for name, value in _token_ids(tokenizer).items():
        setattr(model.generation_config, name, value)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
