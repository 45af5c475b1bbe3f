"""Register `MULTILORA` as a PEFT method. This is the only file that uses private names of PEFT.

PEFT has no plug-in hook: `register_peft_method` accepts only members of the `PeftType` enum, and other code
(transformers' `load_adapter`, PEFT's `get_model_status`) needs a member and not a string. So importing this package
adds a member to the enum, through private attributes of `enum.Enum`.

The other files subclass `BaseTuner` and `BaseTunerLayer` and override their hooks, as every PEFT method does. They
import only names without a leading underscore, some from undocumented submodules such as `peft.utils.other`.
"""

from __future__ import annotations

from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import _get_in_out_features
from peft.utils import PeftType, register_peft_method

NAME = "MULTILORA"

in_out_features = _get_in_out_features


def add_peft_type(name: str = NAME) -> Any:
    """The `PeftType` member `name`, which is added if it does not exist.

    Raises:
        RuntimeError: the installed PEFT cannot be extended; names its version and the supported ones.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType.__members__)
    PeftType._member_map_[name] = member
    PeftType._member_names_.append(name)
    PeftType._value2member_map_[name] = member
    if PeftType(name) is not member or PeftType[name] is not member or name not in list(PeftType):
        import peft

        raise RuntimeError(
            f"could not add {name} to peft {peft.__version__}'s PeftType; multilora needs peft 0.21 or newer "
            "and is tested with 0.21.0 and 0.21.2: install one of these"
        )
    return member


def register(config_cls: type, model_cls: type) -> None:
    """Register the method; a second call, such as after reloading a module, does nothing."""
    member = add_peft_type()
    if member not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=config_cls, model_cls=model_cls)
