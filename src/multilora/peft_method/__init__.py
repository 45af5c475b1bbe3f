"""MultiLoRA as a PEFT method; importing this package registers it."""

from multilora.peft_method._register import register
from multilora.peft_method.config import MultiLoraConfig
from multilora.peft_method.experts import ParamWrapper
from multilora.peft_method.layer import MultiLoraLayer, MultiLoraLinear
from multilora.peft_method.model import MultiLoraModel

__all__ = ["MultiLoraConfig", "MultiLoraLayer", "MultiLoraLinear", "MultiLoraModel", "ParamWrapper"]

register(MultiLoraConfig, MultiLoraModel)
