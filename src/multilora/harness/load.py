"""Load the model and tokenizer that lm-eval's model arguments name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist

from multilora.errors import InputError
from multilora.modeling import (
    best_device,
    load_adapter,
    load_base,
    load_model_config,
    load_tokenizer,
    model_source,
    to_device,
)
from multilora.processes import join_processes
from multilora.recipe.schema import ModelSection
from multilora.runs.directory import RECIPE_FILE, Run

AUTO = "auto"
DEFAULT_DEVICE = "cuda:0"  # what lm-eval's command line passes if no device is chosen, also where there is none


@dataclass(frozen=True)
class ModelArguments:
    """What to evaluate: a run, or a base with or without an adapter.

    run: directory of a finished run, which is loaded as it was trained
    pretrained: `nano`, a folder saved by save_pretrained, or a name on the hub
    peft: folder or hub name of an adapter of any PEFT method, for `pretrained`
    dtype: float32, bfloat16, float16, or auto (that of the checkpoint); for `pretrained`
    device: such as cuda:0 or cpu; by default the current accelerator, or else the CPU
    revision, trust_remote_code: as in a recipe's `model`, for `pretrained`
    add_bos_token: whether the tokenizer puts BOS first; by default, it decides
    """

    run: str | None = None
    pretrained: str | None = None
    peft: str | None = None
    dtype: str | None = None
    device: str | None = None
    revision: str | None = None
    trust_remote_code: bool | None = None
    add_bos_token: bool | None = None

    def load(self) -> tuple[Any, Any]:
        """Load the model, in eval mode on its device, and the tokenizer.

        Raises:
            InputError: the arguments contradict each other, or something cannot be loaded.
        """
        if (self.run is None) == (self.pretrained is None):
            shown = "both" if self.run is not None else "neither"
            raise InputError(f"model_args: {shown} of `run` and `pretrained` set; give one of them")
        device = _device(self.device)
        if self.run is not None:
            self._check_alone()
            run = Run(self.run)
            section = run.recipe.model
            model = run.load_model()
        else:
            section = self._section()
            model = load_base(section)
            if self.peft is not None:
                model = _with_adapter(model, self.peft)
        return to_device(model, device).eval(), self._tokenizer(section)

    def _check_alone(self) -> None:
        names = ("peft", "dtype", "revision", "trust_remote_code")
        conflicting = [name for name in names if getattr(self, name) is not None]
        if conflicting:
            raise InputError(
                f"model_args: {', '.join(conflicting)} set beside `run`, whose recipe sets them; leave them out, or "
                "give `pretrained` and `peft` instead of `run`"
            )

    def _section(self) -> ModelSection:
        """The section of a recipe that loads the base."""
        dtypes = get_args(ModelSection.model_fields["dtype"].annotation)
        dtype = self.dtype or AUTO
        if dtype not in (AUTO, *dtypes):
            raise InputError(f"model_args: dtype is {dtype!r}, expected auto, {', '.join(dtypes)}")
        options: dict[str, Any] = {"name_or_path": str(self.pretrained), "revision": self.revision}
        section = ModelSection(**options, trust_remote_code=bool(self.trust_remote_code))
        if dtype == AUTO:
            # Like transformers, which loads a checkpoint without a dtype in float32.
            stored = str(getattr(load_model_config(section).get_text_config(), "dtype", None)).removeprefix("torch.")
            dtype = stored if stored in dtypes else "float32"
        return section.model_copy(update={"dtype": dtype})

    def _tokenizer(self, section: ModelSection) -> Any:
        tokenizer = load_tokenizer(section)
        if self.add_bos_token is None:
            return tokenizer
        from transformers import AutoTokenizer

        # The setting is compiled into fast tokenizers when they are loaded.
        return AutoTokenizer.from_pretrained(
            model_source(section),
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
            add_bos_token=self.add_bos_token,
        )


def _device(name: str | None) -> torch.device:
    """The device of this process; with several processes, also join them."""
    join_processes(cpu=name == "cpu")
    if dist.is_available() and dist.is_initialized() and name != "cpu":
        return best_device()  # each process has its own
    if name is None or (name == DEFAULT_DEVICE and not torch.cuda.is_available()):
        return best_device()
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        reason = str(error).splitlines()[0]
        raise InputError(
            f"model_args: device is {name!r}, expected one of this machine, such as cuda, cuda:1, mps or cpu ({reason})"
        ) from None


def _with_adapter(model: Any, source: str) -> Any:
    if (Path(source) / RECIPE_FILE).is_file():
        raise InputError(f"model_args: peft is {source!r}, which is a run; give it as `run`, without `pretrained`")
    return load_adapter(model, source)
