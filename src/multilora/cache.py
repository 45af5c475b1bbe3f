"""The cache of results that can be recomputed: its folder and its keys.

It is `multilora/` in the cache folder of `datasets` and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from multilora.files import checksum, write_text


def cache_root() -> Path:
    """`multilora/` in HF_DATASETS_CACHE, else in `datasets/` of HF_HOME (by default ~/.cache/huggingface).

    Read from the environment, as `datasets` does, because importing `datasets` is slow.
    """
    datasets_cache = os.environ.get("HF_DATASETS_CACHE")
    if not datasets_cache:
        user_cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
        home = os.environ.get("HF_HOME", os.path.join(user_cache, "huggingface"))
        datasets_cache = os.path.join(home, "datasets")
    return Path(datasets_cache).expanduser() / "multilora"


def cache_key(*parts: Any) -> str:
    """A key of 32 characters made from `parts` (JSON values, or anything with a stable `str`)."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def content_digest(path: Path) -> str:
    """The SHA-256 of a file's content. It is computed once per path, size and modification time.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    known = cache_root() / "digests" / cache_key(str(path.resolve()), status.st_size, status.st_mtime_ns)
    with suppress(OSError):
        return known.read_text(encoding="ascii")
    digest = checksum(path)
    with suppress(OSError):  # a cache that cannot be written only costs time
        known.parent.mkdir(parents=True, exist_ok=True)
        write_text(known, digest)
    return digest


def code_digest(folder: Path) -> str:
    """A hash of all Python files in a folder, for keys of results that depend on this code."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
