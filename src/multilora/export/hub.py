"""Upload an export to the hub of Hugging Face."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from multilora.errors import InputError, RunError
from multilora.runs.card import base_on_hub
from multilora.saved_adapter import CONFIG_FILE

logger = logging.getLogger(__name__)

# The second is that of the HTTP client, which depends on the version of huggingface_hub.
_ERRORS: tuple[Any, ...] = (OSError, HfHubHTTPError.__mro__[1])


def check_hub(repository: str) -> None:
    """Find out before the work whether something can be uploaded.

    Raises:
        InputError: the name is none of a repository, nobody is logged in, or the hub cannot be reached.
    """
    if repository.count("/") != 1:
        raise InputError(f"--push-to-hub {repository}: expected the name of a repository, such as owner/name")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"--push-to-hub {repository}: {' '.join(str(error).split())}") from error
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise InputError(f"--push-to-hub {repository}: no token of the hub here; run `hf auth login` first") from error
    except _ERRORS as error:
        raise InputError(f"--push-to-hub {repository}: the hub refuses or does not answer ({_short(error)})") from error


def push_to_hub(path: str | Path, repository: str, *, private: bool = False) -> str:
    """Upload an export: a folder, or a GGUF file. A repository that does not exist is created.

    Args:
        path: of the export
        repository: owner/name
        private: whether a new repository is private

    Returns:
        the address of the repository

    Raises:
        InputError: see `check_hub`.
        RunError: the upload failed; the export is complete.
    """
    check_hub(repository)
    path, api = Path(path), HfApi()
    _warn_of_a_local_base(path)
    message = "Upload an export of multilora"
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        if path.is_dir():
            api.upload_folder(repo_id=repository, folder_path=path, commit_message=message)
        else:
            api.upload_file(path_or_fileobj=path, path_in_repo=path.name, repo_id=repository, commit_message=message)
    except _ERRORS as error:
        raise RunError(
            f"{repository}: the upload failed ({_short(error)}); the export in {path} is complete, so "
            f"`hf upload {repository} {path}` can upload it later"
        ) from error
    return str(address)


def _warn_of_a_local_base(path: Path) -> None:
    """Warn if an adapter is for a base that nobody else has under this name."""
    try:
        base = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except OSError:  # no adapter
        return
    if not base or base_on_hub(str(base)) is None:
        logger.warning(
            "%s: its base is %s on this machine; nobody else can load it by that name. Upload the base too and set "
            "base_model_name_or_path in %s",
            path,
            base,
            CONFIG_FILE,
        )


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
