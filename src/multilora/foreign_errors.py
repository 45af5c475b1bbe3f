"""What other libraries and the system raise, as errors of ours that say what to do next.

The library's public functions and the command line let nothing but a `MultiLoraError` out, with the original error as
its cause.
"""

from __future__ import annotations

import errno
import functools
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from multilora.errors import InputError, MultiLoraError, RunError

P = ParamSpec("P")
R = TypeVar("R")

# Import name -> what installs it.
PACKAGES = {
    "bitsandbytes": "'multilora[quantization]'",
    "trl": "'multilora[trl]'",
    "gguf": "'multilora[gguf]'",
    "sacrebleu": "'multilora[metrics]'",
    "rouge_score": "'multilora[metrics]'",
    "flash_attn": "flash-attn",
    "liger_kernel": "liger-kernel",
    "galore_torch": "galore-torch",
    "apollo_torch": "apollo-torch",
    "lomo_optim": "lomo-optim",
    "torchao": "torchao",
    "wandb": "wandb",
    "tensorboard": "tensorboard",
    "tensorboardX": "tensorboard",
    "trackio": "trackio",
    "mlflow": "mlflow",
    "comet_ml": "comet_ml",
    "deepspeed": "deepspeed",
    "kernels": "kernels",
}
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
# Of safetensors, and of torch.save, whose zip writer reports that the file is shorter than what it wrote.
_FULL_DISK_TEXT = re.compile(r"No space left on device|Disk quota exceeded|unexpected pos \d+ vs \d+|iostream error")
_BAD_PATH = {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENODEV}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}


def own_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function raise nothing but our own errors (and `KeyboardInterrupt`)."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except MultiLoraError:
            raise
        except Exception as error:
            raise as_own_error(error) from error

    return wrapped


def as_own_error(error: BaseException) -> MultiLoraError:
    """The error of ours that says what happened and what to do next.

    Args:
        error: anything; our own errors are returned as they are
    """
    cause: BaseException | None = error
    while cause is not None:  # other processes and libraries wrap our errors
        if isinstance(cause, MultiLoraError):
            return cause
        cause = cause.__cause__
    for matches, translate in _TRANSLATIONS:
        if matches(error):
            return translate(error)
    return RunError(
        f"unexpected {type(error).__name__}: {_message(error)}. If your input is right this is a bug in multilora: run "
        "again with --debug and report the traceback"
    )


def _message(error: BaseException, limit: int = 400) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _is(*names: str) -> Callable[[BaseException], bool]:
    """Whether an error, or a class it derives from, has one of these qualified names; imports nothing."""
    return lambda error: any(f"{c.__module__}.{c.__qualname__}".endswith(names) for c in type(error).__mro__)


def is_full_disk(error: BaseException) -> bool:
    """Whether a write failed because the disk is full or the quota used up, as libraries without an errno report it."""
    if isinstance(error, OSError):
        return error.errno in _FULL_DISK
    return bool(_FULL_DISK_TEXT.search(str(error)))


def _full_disk(error: BaseException) -> MultiLoraError:
    return RunError(
        f"the disk is full ({_message(error, 200)}); free some space or write elsewhere, then run again (train: with "
        "--resume)"
    )


def _system_error(error: Any) -> MultiLoraError:
    file = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or _message(error)
    if error.errno in _FULL_DISK:
        return RunError(f"{file}{reason}; free some space or write elsewhere, then run again (train: with --resume)")
    if error.errno in _NOT_ALLOWED:
        return InputError(f"{file}{reason}; change its permissions or choose another place")
    if error.errno in _BAD_PATH or isinstance(
        error, FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError
    ):
        return InputError(f"{file}{reason}; check the path")
    return RunError(f"{file}{reason}; check the file system, then run again")


def _missing_package(error: Any) -> MultiLoraError:
    text = _message(error)
    candidates = [error.name.partition(".")[0]] if getattr(error, "name", None) else []
    candidates += [name for name in PACKAGES if re.search(rf"\b{name}\b", text.replace("-", "_"))]
    for name in candidates:
        if name in PACKAGES:
            return InputError(f"{name} is needed and not installed ({text}); pip install {PACKAGES[name]}")
    if candidates:
        return InputError(f"{candidates[0]} is needed and not installed ({text}); pip install {candidates[0]}")
    return InputError(f"a package is missing or too old ({text}); install it, or leave out the option that needs it")


def _out_of_memory(error: BaseException) -> MultiLoraError:
    return RunError(
        f"out of memory ({_message(error, 200)}); lower per_device_train_batch_size or data.max_length (raise "
        "gradient_accumulation_steps to keep the plan), set training.gradient_checkpointing, or quantize the model"
    )


def _damaged_file(error: BaseException) -> MultiLoraError:
    return InputError(
        f"a file of weights or data is damaged ({type(error).__name__}: {_message(error)}); restore it, or download it "
        "again"
    )


def _wrong_weights(error: BaseException) -> MultiLoraError:
    return InputError(
        f"the weights do not fit the model's config ({_message(error)}); use the config and weights of one model"
    )


def _too_deep(error: BaseException) -> MultiLoraError:
    return InputError(f"the input is nested too deeply ({_message(error, 120)}); flatten it")


def _bad_pattern(error: Any) -> MultiLoraError:
    return InputError(
        f"a regular expression cannot be compiled ({_message(error)}; pattern {error.pattern!r}); fix it, or give a "
        "list of names"
    )


_TRANSLATIONS: list[tuple[Callable[[BaseException], bool], Callable[[Any], MultiLoraError]]] = [
    (lambda error: not isinstance(error, OSError) and is_full_disk(error), _full_disk),
    (_is("SafetensorError", "UnpicklingError", "BadZipFile", "lib.ArrowInvalid"), _damaged_file),
    (lambda error: isinstance(error, MemoryError), _out_of_memory),
    (_is("torch.OutOfMemoryError", "cuda.OutOfMemoryError"), _out_of_memory),
    (lambda error: isinstance(error, OSError), _system_error),
    (lambda error: isinstance(error, ImportError), _missing_package),
    (lambda error: isinstance(error, RecursionError), _too_deep),
    (lambda error: isinstance(error, re.error), _bad_pattern),
    (
        lambda error: isinstance(error, RuntimeError) and bool(re.search(r"size mismatch|shape mismatch", str(error))),
        _wrong_weights,
    ),
]
