"""Facts about a model that can be known without loading it: its configuration and fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from factory.errors import DamagedFile, ManifestError
from factory.files import read_json

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
WIDTH_KEYS = ("hidden_size", "n_embd")
HEAD_KEYS = ("num_attention_heads", "n_head")
SAMPLED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a configuration says. `context` is in tokens, None where the model sets no limit.

    `head_size` is the width of an attention head, None where the configuration does not tell it.
    """

    model: str
    revision: str | None
    model_type: str
    vocab_size: int
    context: int | None
    encoder_decoder: bool
    fingerprint: str
    head_size: int | None = None

    def as_record(self) -> dict[str, Any]:
        """The facts as `run.json` keeps them."""
        return asdict(self)


def model_facts(model: str, revision: str | None, place: str) -> ModelFacts:
    """Read a model's `config.json` from its folder or its hub.

    Raises:
        ManifestError: there is no such model, or its configuration names no vocabulary.
    """
    folder, commit = _local_folder(model, revision, place)
    config = _config(folder, model, place)
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else config
    if not isinstance(text.get("vocab_size"), int):
        raise ManifestError(place, model, "its config.json names no vocab_size: not a text model")
    return ModelFacts(
        model=model,
        revision=revision,
        model_type=config.get("model_type", "unknown"),
        vocab_size=text["vocab_size"],
        context=context_of(text),
        encoder_decoder=bool(config.get("is_encoder_decoder")),
        fingerprint=commit or _fingerprint(folder),
        head_size=head_size_of(text),
    )


def head_size_of(text: dict[str, Any]) -> int | None:
    """The width of an attention head by a (text) configuration; None where it does not tell."""
    if text.get("head_dim"):
        return int(text["head_dim"])
    widths = next((text[key] for key in WIDTH_KEYS if text.get(key)), None)
    heads = next((text[key] for key in HEAD_KEYS if text.get(key)), None)
    return int(widths) // int(heads) if widths and heads else None


def _config(folder: Path, model: str, place: str) -> dict[str, Any]:
    try:
        config = read_json(folder / "config.json")
    except DamagedFile:
        config = None
    if not isinstance(config, dict):
        raise ManifestError(place, model, "its config.json is not a JSON object: mend it")
    return config


def context_of(text: dict[str, Any]) -> int | None:
    """The context that a (text) model's configuration sets, in tokens; None where it sets none."""
    # T5 tells the length it was trained on as n_positions; its relative positions know no end.
    if "relative_attention_num_buckets" in text:
        return None
    return next((text[key] for key in CONTEXT_KEYS if text.get(key)), None)


def model_folder(model: str, revision: str | None, place: str) -> Path:
    """The folder with the whole model: configurations and safetensors, downloaded where need be.

    Raises:
        ManifestError: there is no such model.
        OSError: its weights cannot be downloaded.
    """
    folder, commit = _local_folder(model, revision, place)
    if commit is None:
        return folder
    from huggingface_hub import snapshot_download

    kinds = ["*.json", "*.safetensors"]
    return Path(snapshot_download(model, revision=commit, allow_patterns=kinds))


def _local_folder(model: str, revision: str | None, place: str) -> tuple[Path, str | None]:
    """The folder with `config.json`, and the commit where a hub names one."""
    if Path(model).is_absolute():
        if not (Path(model) / "config.json").is_file():
            raise ManifestError(place, model, "holds no config.json: check the path of the model")
        return Path(model), None
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        remedy = "hub models need huggingface_hub: pip install 'seqkd[train]', or give a folder"
        raise ManifestError(place, model, remedy) from None
    try:
        path = Path(hf_hub_download(model, "config.json", revision=revision))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = " ".join(str(error).split())[:160]
        remedy = f"is neither a folder nor a model the hub gives: {reason}"
        raise ManifestError(place, model, remedy) from None
    return path.parent, path.parent.name


def _fingerprint(folder: Path) -> str:
    """Digest of a model folder: configurations whole; size, head and tail of weights."""
    digest = hashlib.sha256()
    kinds = ("config.json", "generation_config.json", "*.safetensors", "*.bin")
    for path in (path for kind in kinds for path in sorted(folder.glob(kind))):
        digest.update(f"{path.name}:{path.stat().st_size}".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(SAMPLED_BYTES))
            stream.seek(max(0, path.stat().st_size - SAMPLED_BYTES))
            digest.update(stream.read(SAMPLED_BYTES))
    return digest.hexdigest()[:16]
