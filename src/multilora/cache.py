"""Where results that can be recomputed are kept, and how they are named.

Everything lies under `multilora/` in the cache folder of `datasets`; deleting it costs time, never results.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def cache_root() -> Path:
    """`multilora/` in HF_DATASETS_CACHE, else in `datasets/` of HF_HOME (by default ~/.cache/huggingface).

    Read from the environment, as `datasets` does, so that finding the cache does not import it.
    """
    datasets_cache = os.environ.get("HF_DATASETS_CACHE")
    if not datasets_cache:
        user_cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
        home = os.environ.get("HF_HOME", os.path.join(user_cache, "huggingface"))
        datasets_cache = os.path.join(home, "datasets")
    return Path(datasets_cache).expanduser() / "multilora"


def cache_key(*parts: Any) -> str:
    """A name of 32 characters for whatever `parts` (JSON values, or anything with a stable `str`) stand for."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def code_digest(folder: Path) -> str:
    """A hash of all Python files under a folder: what older code produced must not be reused."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
