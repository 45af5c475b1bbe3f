"""Exports are compared with the original before they are put in place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_gpt2, make_llama, make_recipe, make_tokenizer, randomise
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import multilora
import multilora.export.lora.export_lora
import multilora.export.merged.layers
import multilora.export.merged.shards
from multilora import MultiLoraConfig, export_lora, export_merged
from multilora.errors import AdapterError, InputError, RunDirectoryError, RunError
from multilora.export.lora.export_lora import write_lora
from multilora.export.merged.export_merged import write_merged
from multilora.export.merged.tensor_files import TensorWriter
from multilora.export.sources.source import open_source
from multilora.runs.directory import Run

IDS = torch.arange(3, 27).reshape(2, 12)


def proof_of_lora(source, out):
    return write_lora(open_source(source), out).proof


EXPORTS = {"lora": (proof_of_lora, export_lora), "merged": (write_merged, export_merged)}
BASES = {
    "llama": make_llama,
    "gpt2": make_gpt2,
    "tied llama": lambda: make_llama(tie_word_embeddings=True),
    "bfloat16 llama": lambda: make_llama(torch.bfloat16),
}
LEARN = ["training.max_steps=10", "training.learning_rate=0.05"]


def logits(model):
    with torch.no_grad():
        return model.eval().float()(IDS).logits


def stock_logits(folder: Path, base: Path, kind: str):
    source = base if kind == "lora" else folder
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    return logits(PeftModel.from_pretrained(model, folder) if kind == "lora" else model)


def train_on(recipe, base_model, folder: Path, overrides) -> Run:
    base_model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    recipe["model"] = {"name_or_path": str(folder), "dtype": str(base_model.dtype).removeprefix("torch.")}
    return multilora.train(recipe, [*LEARN, *overrides])


@pytest.fixture(scope="module")
def trained(model_folder, tmp_path_factory) -> Path:
    """The directory of a run."""
    return multilora.train(make_recipe(tmp_path_factory.mktemp("trained"), model_folder), LEARN).path


@pytest.fixture
def run(trained, tmp_path) -> Run:
    """A copy of it, which a test may damage."""
    shutil.copytree(trained, tmp_path / "run")
    return Run(tmp_path / "run")


def hidden_and_visible(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize(
    ("base", "overrides"),
    [
        ("llama", []),
        ("llama", ["adapter.modules_to_save=[lm_head]", "adapter.target_modules=[q_proj]"]),
        ("gpt2", []),
        ("tied llama", ["adapter.target_modules=[lm_head, q_proj]"]),
        ("tied llama", ["adapter.target_modules=[q_proj]", "adapter.modules_to_save=[lm_head]"]),
        ("bfloat16 llama", []),
        ("bfloat16 llama", ["adapter.modules_to_save=[lm_head]", "adapter.target_modules=[q_proj]"]),
    ],
)
def test_stock_classes_load_the_run_s_model(recipe, tmp_path, kind, base, overrides):
    run = train_on(recipe, BASES[base](), tmp_path / "base", overrides)
    verification = EXPORTS[kind][0](run, tmp_path / "out")
    assert verification.difference <= verification.tolerance
    assert verification.count == 6
    assert not verification.random
    expected = logits(run.load_model())
    effect = (expected - logits(run.load_base())).abs().max()
    difference = (stock_logits(tmp_path / "out", tmp_path / "base", kind) - expected).abs().max()
    rounded = base == "bfloat16 llama" and kind == "merged"
    assert difference < (0.1 if rounded else 1e-4) * effect
    if kind == "merged":
        weights = load_file(tmp_path / "out" / "model.safetensors")
        assert {weights[name].dtype for name in weights if "lm_head" not in name} == {run.load_base().dtype}


@pytest.mark.parametrize(
    "config",
    [
        MultiLoraConfig(target_modules=["lm_head"]),
        LoraConfig(target_modules=["lm_head"]),
        LoraConfig(target_modules=["embed_tokens", "q_proj"]),
        LoraConfig(target_modules=["embed_tokens", "lm_head"]),
        LoraConfig(target_modules=["q_proj"], trainable_token_indices={"lm_head": [3, 4, 5]}),
    ],
    ids=["multilora-head", "head", "embeddings", "both", "tokens of the head"],
)
def test_a_tied_model_is_untied_when_it_is_merged(recipe, tmp_path, config):
    run = train_on(recipe, BASES["tied llama"](), tmp_path / "base", [])
    model = get_peft_model(run.load_base(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(run.weights)
    expected = logits(run.load_model())
    assert (expected - logits(run.load_base())).abs().max() > 1e-2
    folder = export_merged(run, tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    weights = load_file(folder / "model.safetensors")
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    torch.testing.assert_close(stock_logits(folder, folder, "merged"), expected, rtol=1e-4, atol=1e-4)


def test_a_tie_that_the_adapter_leaves_alone_stays(recipe, tmp_path):
    run = train_on(recipe, BASES["tied llama"](), tmp_path / "base", [])
    folder = export_merged(run, tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")


@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
def test_merging_a_tied_head_in_memory_keeps_the_embeddings(merge):
    model = get_peft_model(BASES["tied llama"](), MultiLoraConfig(target_modules=["lm_head"]))
    randomise(model)
    expected = logits(model)
    embeddings = model.get_input_embeddings().weight.clone()
    merged = getattr(model, merge)() or model
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(merged.get_input_embeddings().weight, embeddings)


def test_the_tie_of_an_encoder_decoder_is_not_merged():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 50}
    base = T5ForConditionalGeneration(T5Config(**sizes, tie_word_embeddings=True))
    model = get_peft_model(base, MultiLoraConfig(target_modules=["lm_head"]))
    with pytest.raises(AdapterError, match=r"lm_head.*cannot be untied"):
        model.merge_and_unload()


def test_a_full_run_is_verified(recipe, tmp_path):
    run = multilora.train(recipe, ["adapter={method: full}"])
    verification = write_merged(run, tmp_path / "out")
    assert verification.difference == 0
    assert torch.equal(stock_logits(tmp_path / "out", tmp_path, "merged"), logits(run.load_model()))


def test_a_damaged_merged_file_is_found(run, tmp_path, monkeypatch):
    class FailingDisk(TensorWriter):
        """One value of one tensor is wrong: of a token that no prompt has."""

        def __exit__(self, *error):
            slot = self.layout.slots["model.embed_tokens.weight"]
            self._write(slot.start + slot.size - 4, b"\0\0\x80?")
            super().__exit__(*error)

    monkeypatch.setattr(multilora.export.merged.shards, "TensorWriter", FailingDisk)
    before = hidden_and_visible(tmp_path)
    with pytest.raises(RunError, match=r"model.embed_tokens.weight differs from what was saved"):
        export_merged(run, tmp_path / "new" / "out")
    assert hidden_and_visible(tmp_path) == before


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_damaged_lora_file_is_found(run, tmp_path, monkeypatch, in_memory):
    correct = multilora.export.lora.export_lora.save

    def damaged(state, **options):
        name = next(name for name in state if "lora_B" in name)
        return correct({**state, name: -state[name]}, **options)

    monkeypatch.setattr(multilora.export.lora.export_lora, "save", damaged)
    before = hidden_and_visible(tmp_path)
    with pytest.raises(RunError, match=r"lora_B.weight differs from what was saved"):
        export_lora(run.load_model() if in_memory else run, tmp_path / "new" / "out")
    assert hidden_and_visible(tmp_path) == before


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_wrong_conversion_is_found(run, tmp_path, monkeypatch, in_memory):
    correct = multilora.export.lora.export_lora.lora_files

    def wrong(*args, **options):
        config, state = correct(*args, **options)
        config.lora_alpha *= 1.1
        return config, state

    monkeypatch.setattr(multilora.export.lora.export_lora, "lora_files", wrong)
    before = hidden_and_visible(tmp_path)
    source = "random tokens" if in_memory else r"task '(even|echo)', example \d, position \d+"
    with pytest.raises(RunError, match=rf"differs from the original: by [\d.]+ in a logit \({source}.*--to merged"):
        export_lora(run.load_model() if in_memory else run, tmp_path / "out")
    assert hidden_and_visible(tmp_path) == before


def test_a_wrong_merge_is_found(recipe, tmp_path, monkeypatch):
    """If the tie is kept, the embeddings are used as the head too."""
    run = train_on(recipe, BASES["tied llama"](), tmp_path / "base", ["adapter.target_modules=[lm_head]"])
    monkeypatch.setattr(multilora.export.merged.layers.LayerMerger, "same", lambda *_: True)
    before = hidden_and_visible(tmp_path)
    with pytest.raises(
        RunError, match=r"The files load as another model. Export it with --to lora.*nothing was written"
    ):
        export_merged(run, tmp_path / "out")
    assert hidden_and_visible(tmp_path) == before


def test_a_config_that_loads_another_model_is_found(run, tmp_path, monkeypatch):
    correct = multilora.export.merged.export_merged.write_config

    def wrong(folder, config, changes, **options):
        correct(folder, {**config, "rms_norm_eps": 0.5}, changes, **options)

    monkeypatch.setattr(multilora.export.merged.export_merged, "write_config", wrong)
    with pytest.raises(RunError, match="The files load as another model"):
        export_merged(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_adapters_are_refused(run, tmp_path, kind, value):
    file = run.weights / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "multilora_scale" in name)
    weights[name].flatten()[1] = value
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="NaN or infinite") as caught:
        EXPORTS[kind][1](run, tmp_path / "out")
    assert name.removeprefix("base_model.model.") in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_full_run_with_nan_is_refused(recipe, tmp_path):
    run = multilora.train(recipe, ["adapter={method: full}"])
    file = run.weights / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"run/model' has NaN or infinite weights \(model.norm.weight\)"):
        export_merged(run, tmp_path / "out")


@pytest.mark.parametrize("kind", EXPORTS)
def test_without_its_data_a_run_is_compared_on_random_tokens(recipe, tmp_path, kind, caplog):
    run = multilora.train(recipe, LEARN)
    (tmp_path / "even.jsonl").unlink()
    verification = EXPORTS[kind][0](run, tmp_path / "one")
    assert (verification.count, verification.random) == (3, False)
    assert "task 'even': its data cannot be loaded" in caplog.text
    (tmp_path / "echo.jsonl").unlink()
    verification = EXPORTS[kind][0](run, tmp_path / "none")
    assert verification.random
    assert "random tokens" in str(verification)


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize("out", ["recipe.txt/out", "recipe.txt", "/proc/none/out"])
def test_an_unwritable_place_is_refused_before_the_work(run, tmp_path, monkeypatch, kind, out):
    (tmp_path / "recipe.txt").write_text("a file")
    monkeypatch.setattr(Run, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(RunDirectoryError, match=r"--out|is a file") as caught:
        EXPORTS[kind][1](run, tmp_path / out)
    assert "output_dir" not in str(caught.value)


@pytest.mark.parametrize("kind", EXPORTS)
def test_an_export_writes_nothing_into_the_run(run, tmp_path, kind):
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    EXPORTS[kind][1](run, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_the_model_in_memory_is_unchanged(tmp_path):
    config = MultiLoraConfig(target_modules="all-linear", bias="multilora_only", modules_to_save=["lm_head"])
    model = get_peft_model(make_llama(attention_bias=True), config).train()
    randomise(model)
    model.add_adapter("other", MultiLoraConfig(target_modules=["q_proj"]))
    before = {name: (value, value.clone(), value.requires_grad) for name, value in model.named_parameters()}
    export_lora(model, tmp_path / "out")
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    for name, (parameter, value, trained) in before.items():
        assert after[name] is parameter, name
        assert torch.equal(parameter, value), name
        assert parameter.requires_grad == trained, name
    assert model.training
    assert model.active_adapters == ["default"]


def test_a_merged_adapter_in_memory_is_not_exported(tmp_path):
    model = get_peft_model(make_llama(), MultiLoraConfig(target_modules=["q_proj"]))
    model.merge_adapter()
    with pytest.raises(AdapterError, match=r"adapter 'default' is merged into the base.*unmerge_adapter"):
        export_lora(model, tmp_path / "out")


@pytest.mark.parametrize("json_option", [False, True])
@pytest.mark.parametrize("kind", EXPORTS)
def test_the_command_prints_the_verified_difference(run, tmp_path, monkeypatch, capsys, kind, json_option):
    from multilora.cli import main

    out = tmp_path / "out"
    options = ["--json"] if json_option else []
    monkeypatch.setattr("sys.argv", ["multilora", "export", str(run.path), "--to", kind, "--out", str(out), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    lines = capsys.readouterr().out
    if json_option:
        printed = json.loads(lines)
        assert printed["folder"] == str(out)
        assert 0 <= printed["verification"]["difference"] <= printed["verification"]["tolerance"]
    else:
        folder, verified, *_ = lines.splitlines()
        assert folder == str(out)
        assert "on 6 prompts of the run's tasks" in verified


def test_models_without_a_vocabulary_head_are_verified_in_memory(tmp_path):
    from transformers import LlamaForSequenceClassification

    base = LlamaForSequenceClassification(make_llama(num_labels=3).config)
    model = get_peft_model(base, MultiLoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS"))
    randomise(model)
    assert proof_of_lora(model, tmp_path / "out").count == 4


def test_a_bfloat16_model_in_memory_is_verified_in_its_precision(tmp_path):
    model = get_peft_model(make_llama(torch.bfloat16), MultiLoraConfig(target_modules="all-linear"))
    randomise(model)
    verification = proof_of_lora(model, tmp_path / "out")
    assert verification.random
    assert verification.difference <= verification.tolerance
    assert model.get_base_model().dtype == torch.bfloat16


def test_a_model_that_reads_no_tokens_is_exported_without_logits(tmp_path, caplog):
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), MultiLoraConfig(target_modules=["0"]))
    randomise(model)
    assert proof_of_lora(model, tmp_path / "out") is None
    assert "Sequential does not read tokens" in caplog.text
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
