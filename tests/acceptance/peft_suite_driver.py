"""PEFT's test classes with another method's configs in their tables; copied next to PEFT's tests and run there.

`pytest.mark.parametrize` keeps the list objects of the tables, so they are changed in place before
the classes are used; `pytest_collection_modifyitems` (in the generated conftest.py)
then keeps the cases with our config.
"""

from __future__ import annotations

import os

from peft import LoraConfig

from tests import (
    test_custom_models,
    test_decoder_models,
    test_encoder_decoder_models,
    test_feature_extraction_models,
    test_quantization,
    test_seq_classifier,
    testing_common,
    testing_utils,
)

METHOD = os.environ["ACCEPTANCE_METHOD"]

if METHOD == "multilora":
    from multilora import MultiLoraConfig as Config

    SMALL = {"r": 4, "num_branches": 2}
    VARIANTS = [{}, {"scaling": "scalar"}, {"lora_alpha": 32, "use_rslora": True}, {"lora_dropout": 0.1}]
    OFF = {"init_weights": False}
else:
    Config = LoraConfig
    SMALL = {"r": 8}
    VARIANTS = [{}, {"lora_alpha": 32, "use_rslora": True}, {"lora_dropout": 0.1}]
    OFF = {"init_lora_weights": False}


def cases():
    """(name, model, config class, options) over the plain models of the tests."""
    for targets in ("lin0", ["lin0"], ["lin1"], ["lin0", "lin1"]):
        yield (f"MLP {targets}", "MLP", Config, {**SMALL, "target_modules": targets})
    for number, variant in enumerate(VARIANTS):
        yield (f"MLP variant {number}", "MLP", Config, {**SMALL, "target_modules": ["lin0"], **variant})
    yield ("MLP saved", "MLP", Config, {**SMALL, "target_modules": ["lin1"], "modules_to_save": ["lin0"]})
    # The tests take three steps of plain SGD and then look whether A has moved; its gradient carries the scale, which
    # starts at zero, so a larger constant is needed to see it behind this model's small outputs.
    faster = {"lora_alpha": 64}
    yield ("Embedding + conv 1D", "EmbConv1D", Config, {**SMALL, "target_modules": ["lin0"], **faster})
    yield ("Conv1D of transformers", "EmbConv1D", Config, {**SMALL, "target_modules": ["conv1d"]})
    yield ("Conv1D bigger", "Conv1dBigger", Config, {**SMALL, "target_modules": ["lin0"]})
    tokens = {"trainable_token_indices": {"emb": [0, 10]}}
    yield ("trainable tokens", "EmbConv1D", Config, {**SMALL, "target_modules": ["lin0"], **tokens, **faster})


def replace(table, rows):
    table[:] = rows


replace(test_custom_models.TEST_CASES, list(cases()))
replace(test_custom_models.ALL_PEFT_CONFIG_CLASSES, [Config])
two = [["lin0"], ["lin0"]], [["lin0"], ["lin1"]]
replace(
    test_custom_models.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES,
    [
        (
            f"{METHOD} {first} {second}",
            METHOD,
            Config,
            {**SMALL, "target_modules": first, **OFF},
            {**SMALL, "target_modules": second, **OFF},
        )
        for first, second in two
    ],
)
replace(
    test_custom_models.MIXED_ADAPTER_TEST_CASES,
    [
        (
            f"{METHOD} mixed",
            Config(target_modules=["lin0"], **SMALL, **OFF),
            Config(target_modules=["lin0"], **{**SMALL, "r": 16}, **OFF),
        )
    ],
)
for module, task_type in (
    (test_decoder_models, "CAUSAL_LM"),
    (test_encoder_decoder_models, "SEQ_2_SEQ_LM"),
    (test_feature_extraction_models, "FEATURE_EXTRACTION"),
    (test_seq_classifier, "SEQ_CLS"),
):
    rows = [{**SMALL, "task_type": task_type, "target_modules": None, "bias": "none", **v} for v in VARIANTS]
    replace(module.ALL_CONFIGS, [(Config, row) for row in rows])
replace(test_quantization.TEST_CASES, [(Config, {**SMALL, "target_modules": ["q_proj", "v_proj"]})])

if METHOD == "multilora":
    # The tests know by class which option turns the neutral start off.
    original = testing_utils.set_init_weights_false

    def set_init_weights_false(config_cls, kwargs):
        return {**kwargs, **OFF} if config_cls is Config else original(config_cls, kwargs)

    for module in (
        testing_utils,
        testing_common,
        test_custom_models,
        test_decoder_models,
        test_encoder_decoder_models,
        test_feature_extraction_models,
        test_quantization,
        test_seq_classifier,
    ):
        if hasattr(module, "set_init_weights_false"):
            module.set_init_weights_false = set_init_weights_false


TestCustomModels = test_custom_models.TestPeftCustomModel
TestMultipleActiveAdapters = test_custom_models.TestMultipleActiveAdapters
TestRequiresGrad = test_custom_models.TestRequiresGrad
TestMixedAdapterBatches = test_custom_models.TestMixedAdapterBatches
TestDecoderModels = test_decoder_models.TestDecoderModels
TestEncoderDecoderModels = test_encoder_decoder_models.TestEncoderDecoderModels
TestFeatureExtractionModels = test_feature_extraction_models.TestPeftFeatureExtractionModel
TestSequenceClassificationModels = test_seq_classifier.TestSequenceClassificationModels
TestQuantization = test_quantization.TestQuantization
