"""What commands take: arguments and options that several share, and the run they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from factory.manifest import Manifest
    from factory.records import RunDirectory

Target = Annotated[Path, typer.Argument(help="a manifest, or the directory of a run")]
Run = Annotated[Path, typer.Argument(help="the directory of a run")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="override the manifest: section.key=value")
]
RunDir = Annotated[Path | None, typer.Option(help="the run's directory, instead of runs/NAME")]
Fresh = Annotated[
    bool, typer.Option(help="agree to throw away what the changed manifest makes stale")
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]


def resolve(
    target: Path, settings: Sequence[str] | None, run_dir: Path | None
) -> tuple[Manifest, Path]:
    """The manifest and the run directory that a command's arguments mean."""
    from factory.reading import load_manifest

    if target.is_dir():
        run = existing(target)
        manifest = load_manifest(run.path("manifest.yaml"), settings or ())
        return manifest, run_dir or run.root
    manifest = load_manifest(target, settings or ())
    return manifest, run_dir or Path("runs") / manifest.name


def existing(directory: Path) -> RunDirectory:
    """The run in a directory that holds one."""
    from factory.records import RunDirectory

    return RunDirectory.existing(directory)
