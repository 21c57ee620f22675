"""Facts about a model from its folder, and a fingerprint that changes with its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from factory.errors import ManifestError
from factory.models import SAMPLED_BYTES, model_facts, model_folder


def facts(folder: Path | str) -> Any:
    return model_facts(str(folder), None, "teacher.model")


def make(folder: Path, config: dict[str, Any], weights: bytes = b"") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_real_models(tiny_llama: Path, tiny_t5: Path) -> None:
    llama, t5 = facts(tiny_llama), facts(tiny_t5)
    assert (llama.model_type, llama.vocab_size, llama.context) == ("llama", 400, 64)
    assert (t5.model_type, t5.vocab_size, t5.context) == ("t5", 400, None)
    assert (llama.encoder_decoder, t5.encoder_decoder) == (False, True)
    assert llama.as_record()["fingerprint"] == llama.fingerprint != t5.fingerprint


@pytest.mark.parametrize(
    ("config", "vocabulary", "context"),
    [
        ({"vocab_size": 9, "max_position_embeddings": 7}, 9, 7),
        ({"vocab_size": 9, "n_positions": 7}, 9, 7),
        ({"vocab_size": 9, "max_position_embeddings": None}, 9, None),
        ({"vocab_size": 9}, 9, None),
        ({"vocab_size": 9, "n_positions": 7, "relative_attention_num_buckets": 4}, 9, None),
        ({"text_config": {"vocab_size": 9, "max_position_embeddings": 7}}, 9, 7),
    ],
)
def test_configurations(
    config: dict[str, Any], vocabulary: int, context: int | None, tmp_path: Path
) -> None:
    found = facts(make(tmp_path / "m", config))
    assert (found.vocab_size, found.context) == (vocabulary, context)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"head_dim": 16, "hidden_size": 64, "num_attention_heads": 2}, 16),
        ({"hidden_size": 64, "num_attention_heads": 2}, 32),
        ({"n_embd": 64, "n_head": 8}, 8),
        ({"head_dim": None, "hidden_size": 64, "num_attention_heads": 4}, 16),
        ({"hidden_size": 64}, None),
        ({}, None),
    ],
)
def test_width_of_a_head(config: dict[str, Any], size: int | None, tmp_path: Path) -> None:
    assert facts(make(tmp_path / "m", {"vocab_size": 9} | config)).head_size == size


def test_fingerprint_is_of_the_contents(tiny_llama: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(tiny_llama, tmp_path / "elsewhere")
    assert facts(copied).fingerprint == facts(tiny_llama).fingerprint
    (copied / "README.md").write_text("notes")
    assert facts(copied).fingerprint == facts(tiny_llama).fingerprint


@pytest.mark.parametrize("place", [0, SAMPLED_BYTES - 1, -1, -SAMPLED_BYTES])
def test_fingerprint_sees_the_ends_of_the_weights(place: int, tmp_path: Path) -> None:
    weights = bytearray(3 * SAMPLED_BYTES)
    before = facts(make(tmp_path / "m", {"vocab_size": 9}, bytes(weights))).fingerprint
    weights[place] = 1
    assert facts(make(tmp_path / "m", {"vocab_size": 9}, bytes(weights))).fingerprint != before


def test_fingerprint_sees_size_configuration_and_every_shard(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", {"vocab_size": 9}, b"12")
    seen = {facts(folder).fingerprint}
    seen.add(facts(make(folder, {"vocab_size": 9}, b"123")).fingerprint)
    seen.add(facts(make(folder, {"vocab_size": 8}, b"123")).fingerprint)
    (folder / "model-2.safetensors").write_bytes(b"4")
    seen.add(facts(folder).fingerprint)
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    seen.add(facts(folder).fingerprint)
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        (None, "holds no config.json: check the path of the model"),
        ("{}", "names no vocab_size: not a text model"),
        ('{"vocab_size": null}', "names no vocab_size: not a text model"),
        ("[]", "its config.json is not a JSON object: mend it"),
        ("{", "its config.json is not a JSON object: mend it"),
        ("\udcff", "its config.json is not a JSON object: mend it"),
        ('{"text_config": 3}', "names no vocab_size: not a text model"),
    ],
)
def test_folders_that_hold_no_model(text: str | None, remedy: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ManifestError) as caught:
        facts(tmp_path)
    assert str(caught.value).startswith(f"teacher.model: '{tmp_path}': ")
    assert remedy in str(caught.value)


@pytest.mark.parametrize("name", ["no/such/repository/at-all", "nobody--/..", "a b"])
def test_names_that_no_hub_takes(name: str) -> None:
    with pytest.raises(ManifestError) as caught:
        facts(name)
    assert str(caught.value).startswith(f"teacher.model: {name!r}: ")
    assert "is neither a folder nor a model the hub gives" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ManifestError, match="is neither a folder nor a model the hub gives"):
        facts("nobody/no-such-model")


def test_the_whole_model_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a hub's cache keeps it: a revision, the commit it names, and that commit's files."""
    commit = "0123456789abcdef" * 2 + "01234567"
    cached = tmp_path / "models--some--teacher"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    snapshot = make(cached / "snapshots" / commit, {"vocab_size": 9})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert facts("some/teacher").fingerprint == commit
    assert model_folder("some/teacher", None, "teacher.model") == snapshot
    assert model_folder(str(snapshot), None, "teacher.model") == snapshot
