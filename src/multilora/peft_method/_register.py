"""Makes `MULTILORA` a PEFT method. The only file that touches what PEFT keeps to itself.

PEFT has no plug-in hook: `register_peft_method` accepts only names that are members of the `PeftType` enum, and other
parts (transformers' `load_adapter`, `get_model_status`) need a real member, not a string. So a member is added at
import, by the attributes the enum itself keeps.
"""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import _get_in_out_features
from peft.utils.peft_types import PeftType, register_peft_method

NAME = "MULTILORA"

in_out_features = _get_in_out_features


def add_peft_type(name: str = NAME) -> Any:
    """The `PeftType` member called `name`, added if PEFT does not have it.

    Raises:
        RuntimeError: this PEFT keeps its enum in another way; names its version and the supported ones.
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
    """Register the method once; a second call (a reloaded module) changes nothing."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    member = add_peft_type()
    if member not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=config_cls, model_cls=model_cls)
