"""What a complete checkpoint contains: the size and checksum of every file, written last."""

from __future__ import annotations

import json
from pathlib import Path

from multilora.files import checksum, write_json

MANIFEST_FILE = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Describe the files of a folder as they are now."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    entries = {str(path.relative_to(folder)): _entry(path) for path in files}
    write_json(folder / MANIFEST_FILE, entries)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint: a missing manifest, or files that are missing or changed; None if nothing is."""
    try:
        entries = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST_FILE} cannot be read ({error})"
    if not expected:
        return f"{MANIFEST_FILE} lists no files"
    for name, (size, digest) in expected.items():
        path = folder / name
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, expected {size}"
            if checksum(path) != digest:
                return f"the checksum of {name} is wrong"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _entry(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": checksum(path)}
