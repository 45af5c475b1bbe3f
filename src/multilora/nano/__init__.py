"""The nano base: a tiny LLaMA, the generated text it is pretrained on, and four generated task families.

Everything here is generated from a seed, offline. `NANO_DIR` is the directory of the packaged base model; load it with
`AutoModelForCausalLM.from_pretrained(NANO_DIR)` and `AutoTokenizer.from_pretrained(NANO_DIR)`.
"""

from pathlib import Path

NANO_DIR = Path(__file__).parent / "model"

__all__ = ["NANO_DIR"]
