"""The base of an adapter: its class, its weights, or only its modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multilora.errors import AdapterError, InputError
from multilora.export.factors import base_key
from multilora.modeling import load_base, load_config, model_source
from multilora.recipe.schema import ModelSection

# PEFT's task type -> the class of transformers. Any other task type uses the class in the base's config.
AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
LABELLED = ("SEQ_CLS", "TOKEN_CLS")
DTYPES = ("float32", "bfloat16", "float16")


def model_class(config: Any, task_type: str | None) -> str:
    """Return the name of the class in transformers that loads a base.

    Raises:
        AdapterError: neither the adapter nor the base says which.
    """
    if task_type in AUTO_CLASSES:
        return AUTO_CLASSES[task_type]
    import transformers

    for name in config.architectures or ():
        if hasattr(transformers, name):
            return str(name)
    raise AdapterError(
        f"the adapter's task_type is {task_type!r} and the base's architectures are {config.architectures}, so its "
        f"class is unknown; set task_type in adapter_config.json to one of {', '.join(AUTO_CLASSES)}"
    )


def adapted_config(section: ModelSection, task_type: str | None, state: dict[str, Tensor]) -> Any:
    """Load the config of a base, with the sizes that an adapter gives it: vocabulary and number of labels.

    Args:
        section: the base
        task_type: PEFT's name of it
        state: the checkpoint of the adapter
    """
    config = load_config(section)
    for key, tensor in state.items():
        name = base_key(key)
        if name.endswith(("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "shared.weight")):
            config.get_text_config().vocab_size = len(tensor)
        if task_type in LABELLED and name in ("score.weight", "classifier.weight", "classifier.out_proj.weight"):
            config.num_labels = len(tensor)
    return config


def empty_base(section: ModelSection, task_type: str | None = "CAUSAL_LM", config: Any = None) -> Any:
    """Build a base on the meta device: its modules and shapes, without memory for the weights.

    Args:
        section: the base
        task_type: PEFT's name of it
        config: of the base, if it is not the one that `section` names

    Raises:
        InputError: the config cannot be loaded.
        AdapterError: see `model_class`.
    """
    import transformers

    config = load_config(section) if config is None else config
    cls = getattr(transformers, model_class(config, task_type))
    from_config = cls.from_config if hasattr(cls, "from_config") else cls._from_config
    options = {"trust_remote_code": section.trust_remote_code} if hasattr(cls, "from_config") else {}
    try:
        with torch.device("meta"):
            model = from_config(config, **options)
    except Exception as error:  # a config that does not fit the class makes transformers raise errors of any kind
        raise InputError(
            f"{section.name_or_path}: {cls.__name__} cannot be built from its config "
            f"({' '.join(str(error).split())[:300]}); check that it is the base of the adapter"
        ) from error
    model.name_or_path = model_source(section)
    return model.eval()


def load_any_base(
    section: ModelSection, task_type: str | None, state: dict[str, Tensor], dtype: torch.dtype | None
) -> Any:
    """Load the base of a saved adapter, with the weights that the adapter does not have.

    Args:
        section: the base; its dtype is not used
        task_type: PEFT's name of it
        state: the checkpoint of the adapter; a vocabulary or head of another size than the base's is resized
        dtype: of the weights; by default that of the checkpoint

    Raises:
        InputError: it cannot be loaded.
        AdapterError: weights are missing in the base and in the adapter.
    """
    import transformers

    stored = load_config(section)
    wanted = adapted_config(section, task_type, state)
    name = str(dtype or getattr(stored.get_text_config(), "dtype", None)).removeprefix("torch.")
    section = section.model_copy(update={"dtype": name if name in DTYPES else "float32"})
    cls = model_class(stored, task_type)
    if cls == AUTO_CLASSES["CAUSAL_LM"]:
        model = load_base(section)
    else:
        model, loading = getattr(transformers, cls).from_pretrained(
            model_source(section),
            revision=section.revision,
            dtype=getattr(torch, section.dtype),
            num_labels=wanted.num_labels,
            output_loading_info=True,
        )
        missing = sorted(set(loading["missing_keys"]) - {base_key(key) for key in state})
        if missing:
            raise AdapterError(
                f"{section.name_or_path}: lacks {len(missing)} weights of a {type(model).__name__}, which the adapter "
                f"does not have either ({', '.join(missing[:3])}); give the base that the adapter was trained on"
            )
    rows = wanted.get_text_config().vocab_size
    if rows != stored.get_text_config().vocab_size:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model.eval()
