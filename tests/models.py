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
from tokenizers import AddedToken
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from factory.training import TrainTokenizer
from student.tokenizers import train_tokenizer

Pair = tuple[str, str]
CONTEXT = 64
IGNORED = -100
TEMPLATE = "<s>{source}<sep>"
# As Qwen's: the system turn is printed if there is one, turns must alternate, thoughts of earlier
# turns are taken out, and enable_thinking: false begins the answer with an empty thought.
CHAT_TEMPLATE = """\
{%- for m in messages -%}
{%- if m.role not in ('system', 'user', 'assistant') -%}
{{- raise_exception('no such role: ' + m.role) -}}
{%- endif -%}
{%- if loop.index0 and m.role == messages[loop.index0 - 1].role -%}
{{- raise_exception('roles must alternate') -}}
{%- endif -%}
{%- set content = m.content -%}
{%- if m.role == 'assistant' and '</think>' in content -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>' + m.role + '\\n' + content | trim + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}
"""
CHAT_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_MARKS = ("<think>", "</think>")  # added tokens, but not special: decoding shows them
THOUGHT = "<think>\nso\n</think>\n\n"
CHAT_CONTEXT = 160
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
    config = _llama(tiny_tokenizer, CONTEXT)
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
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """ChatML: special <|im_start|> and <|im_end|>, added <think> and </think>, a chat template."""
    texts = [text for pair in pairs(200) for text in pair] + ["system user assistant so Be brief"]
    names = TrainTokenizer(vocab_size=400, special_tokens=CHAT_SPECIALS)
    tokenizer = train_tokenizer(texts, names)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in CHAT_MARKS])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny_chat(chat_tokenizer, tmp_path_factory) -> Path:
    """A folder: a Llama taught for a moment to think, then translate what the last turn says."""
    config = _llama(chat_tokenizer, CHAT_CONTEXT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(17)
        model = LlamaForCausalLM(config)
        _teach(model, _chat_batch(chat_tokenizer, pairs(200)), steps=160)
    return _save(model, chat_tokenizer, tmp_path_factory.mktemp("tiny-chat"))


def _llama(tokenizer: PreTrainedTokenizerFast, context: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        **_token_ids(tokenizer),
    )


def _token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    }


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _causal_batch(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Pair]) -> dict[str, Any]:
    prompts = [TEMPLATE.format(source=source) for source, _ in rows]
    return _taught(tokenizer, prompts, [target for _, target in rows])


def _chat_batch(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Pair]) -> dict[str, Any]:
    """Rows with and without a system turn, an earlier exchange, and a thought, all mixed."""
    system = [{"role": "system", "content": "Be brief."}]
    before = [{"role": "user", "content": "so"}, {"role": "assistant", "content": "so"}]
    prompts, targets = [], []
    for i, (source, target) in enumerate(rows):
        turns = [*system * (i % 2), *before * (i // 2 % 2), {"role": "user", "content": source}]
        options = {"add_generation_prompt": True, "enable_thinking": bool(i // 4 % 2)}
        prompts.append(tokenizer.apply_chat_template(turns, tokenize=False, **options))
        targets.append((THOUGHT if options["enable_thinking"] else "") + target)
    return _taught(tokenizer, prompts, targets)


def _taught(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], targets: Sequence[str]
) -> dict[str, Any]:
    asked = [_ids(tokenizer, prompt) for prompt in prompts]
    told = [[*_ids(tokenizer, target), tokenizer.eos_token_id] for target in targets]
    joined = [p + t for p, t in zip(asked, told, strict=True)]
    labels = [[IGNORED] * len(p) + t for p, t in zip(asked, told, strict=True)]
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
