"""Read a study back from the files in its folder: its results, and the study file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from multilora.errors import InputError, RunDirectoryError
from multilora.study.tables import RESULTS

STUDY_FILE, RESULTS_FILE = "study.yaml", f"{RESULTS}/results.json"


def read_results(folder: Path) -> dict[str, Any]:
    """The results of a study, as `study_results` made them.

    Raises:
        InputError: there are none yet.
        RunDirectoryError: the file is damaged.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        raise InputError(f"{folder}: has no {RESULTS_FILE} yet; run `multilora study {folder / STUDY_FILE}` first")
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        restore_bounds(results)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunDirectoryError(f"{path}: cannot be read ({error}); run the study again, which writes it") from None
    return results


def restore_bounds(results: dict[str, Any]) -> None:
    """Replace null by the infinite bounds and the missing p of a single seed, which JSON does not have."""
    single = results.get("single_task") or {}
    for item in [*results["differences"], *single.get("differences", [])]:
        for key, value in (("low", -math.inf), ("high", math.inf), ("adjusted_p_value", math.nan)):
            if item[key] is None:
                item[key] = value


def read_study(folder: Path) -> dict[str, Any]:
    """The values of the study file that the study wrote to its folder.

    Raises:
        RunDirectoryError: it is missing or damaged.
    """
    path = folder / STUDY_FILE
    try:
        study = yaml.safe_load(path.read_text(encoding="utf-8"))
        _ = study["methods"], study["seeds"], study["recipe"]["model"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"{path}: cannot be read ({error}); run the study again, which writes it") from None
    return dict(study)


def adapter_methods(study: Mapping[str, Any]) -> dict[str, str]:
    """Name of every method of a study -> the method of its adapter, such as `lora`."""
    return {name: section["adapter"]["method"] for name, section in study["methods"].items()}
