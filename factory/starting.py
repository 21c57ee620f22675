"""`seqkd init`: a commented manifest and two sample files, which run as they are."""

from __future__ import annotations

import json
from pathlib import Path

from factory.errors import RunError
from factory.files import shipped, write_text

PLACES = {"garden": "jardin", "street": "chemin", "park": "parc", "field": "champ", "wood": "bois"}
CREATURES = {"dog": "chien", "cat": "chat", "horse": "cheval", "bird": "moineau", "boy": "garçon"}
ACTIONS = {"runs": "court", "sleeps": "dort", "waits": "attend", "plays": "joue"}


def start(directory: Path) -> list[Path]:
    """Write the manifest and the sample files; returns their paths.

    Raises:
        RunError: the folder already holds something.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RunError(directory, None, "is not empty: name a new folder")
    rows = [
        {
            "en": f"The {creature} {action} in the {place}.",
            "fr": f"Le {chose} {fait} dans le {lieu}.",
        }
        for creature, chose in CREATURES.items()
        for action, fait in ACTIONS.items()
        for place, lieu in PLACES.items()
    ]
    held_out = rows[3::10]
    texts = {
        "manifest.yaml": (shipped("manifests") / "start.yaml").read_text("utf-8"),
        "train.jsonl": _jsonl([row for row in rows if row not in held_out]),
        "test.jsonl": _jsonl(held_out),
    }
    for name, text in texts.items():
        write_text(directory / name, text)
    return [directory / name for name in texts]


def _jsonl(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
