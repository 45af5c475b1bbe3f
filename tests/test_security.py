"""Attacks with every kind of input that docs/security.md calls untrusted: none of them runs code."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY, numbered, write_jsonl

import multilora
from multilora.errors import InputError, MultiLoraError, RecipeError
from multilora.modeling import load_base
from multilora.recipe.schema import ModelSection
from multilora.runs.directory import Run
from multilora.tasks.readers import read_records
from multilora.training.checkpoint import last_complete
from multilora.training.manifest import write_manifest

DOCUMENT = REPOSITORY / "docs" / "security.md"


class Attack:
    """Payloads that create `marker`, a folder, when their code runs."""

    def __init__(self, folder: Path) -> None:
        self.marker = folder / "attacked"

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)

    @property
    def python(self) -> str:
        return f"import os\nos.makedirs({str(self.marker)!r}, exist_ok=True)\n"

    @property
    def succeeded(self) -> bool:
        return self.marker.exists()

    def clear(self) -> None:
        shutil.rmtree(self.marker, ignore_errors=True)


@pytest.fixture
def attack(tmp_path):
    payload = Attack(tmp_path)
    yield payload
    assert not payload.succeeded


def write_pickles(attack, path, kind):
    """Write a pickle that runs code when it is loaded without restrictions, and show that it does."""
    file = io.BytesIO()
    if kind == "plain":
        file.write(pickle.dumps(attack))
        pickle.loads(file.getvalue())
    else:
        torch.save({"weight": attack}, file, _use_new_zipfile_serialization=kind == "zip")
        file.seek(0)
        torch.load(file, weights_only=False)
    path.write_bytes(file.getvalue())
    assert attack.succeeded
    attack.clear()


pickles = pytest.mark.parametrize("kind", ["plain", "zip", "legacy"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model_folder):
    """A finished run with two checkpoints, which the tests copy."""
    folder = tmp_path_factory.mktemp("trained")
    return multilora.train(tiny_recipe(folder, model_folder))


def tiny_recipe(folder, model_folder, **task):
    path = write_jsonl(folder / "data.jsonl", numbered({"question": "is it even", "answer": "yes"}, 12))
    return {
        "model": {"name_or_path": str(model_folder), "dtype": "float32"},
        "adapter": {"r": 2},
        "tasks": [
            {"name": "even", "path": str(path), "prompt": "{{ question }}", "response": "{{ answer }}"} | task,
        ],
        "data": {"max_length": 64},
        "training": {"max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 2, "logging_steps": 2},
        "evaluation": {"max_new_tokens": 4, "max_examples": 2},
        "output_dir": str(folder / "run"),
    }


@pytest.fixture
def run(trained, tmp_path):
    return Run(shutil.copytree(trained.path, tmp_path / "copy"))


@pytest.fixture
def base(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "base")


def load(folder):
    return load_base(ModelSection(name_or_path=str(folder)))


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# Recipes


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir", "module:this"])
def test_recipe_yaml_with_python_objects(attack, tmp_path, tag):
    text = f"model: nano\noutput_dir: !!python/{tag} [{str(attack.marker)!r}]\n"
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match="is not YAML"):
        multilora.Recipe.load(path)
    with pytest.raises(RecipeError):
        multilora.Recipe.load({"model": "nano"}, [f"output_dir=!!python/{tag} [{str(attack.marker)!r}]"])
    if "apply" in tag:
        yaml.unsafe_load(text)
        assert attack.succeeded
        attack.clear()


def test_recipe_yaml_that_expands(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(RecipeError, match="expands"):
        multilora.Recipe.load(path)


def test_recipe_references_run_code(tmp_path, model_folder):
    """Trusted: a recipe, and so the recipe.yaml of a run, names Python code that is run."""
    attack = Attack(tmp_path)
    (tmp_path / "evil.py").write_text(attack.python + "def metric(references, prediction):\n    return 1.0\n")
    recipe = tiny_recipe(tmp_path, model_folder, metric=f"{tmp_path / 'evil.py'}:metric")
    multilora.plan(recipe)
    assert attack.succeeded


# Templates and data


ESCAPES = [
    "{{ question.__class__.__mro__[1].__subclasses__() }}",
    "{{ question|attr('__class__') }}",
    "{{ question['__class__'] }}",
    "{{ '{0.__class__.__mro__}'.format(question) }}",
    "{{ '%s'.__format__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.mkdir('MARKER') }}",
    "{{ lipsum.__globals__['os'].mkdir('MARKER') }}",
    "{{ joiner.__init__.__globals__.os.mkdir('MARKER') }}",
    "{{ namespace.__init__.__globals__.os.mkdir('MARKER') }}",
    "{% import 'os' as os %}{{ os.mkdir('MARKER') }}",
    "{% include '/etc/passwd' %}",
    "{{ [].append(1) or question.gi_frame.f_globals }}",
]
EXHAUSTING = [
    "{{ 'x' * 10**10 }}",
    "{{ 10 ** (10 ** 8) }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}x",
    "{{ range(10**12)|list }}",
]


@pytest.mark.parametrize("template", [*ESCAPES, *EXHAUSTING])
@pytest.mark.parametrize("key", ["prompt", "response"])
def test_templates_cannot_escape_the_sandbox(attack, tmp_path, model_folder, template, key):
    recipe = tiny_recipe(tmp_path, model_folder, **{key: template.replace("MARKER", str(attack.marker))})
    with pytest.raises(InputError):
        multilora.plan(recipe)


@pytest.mark.parametrize("template", ESCAPES)
def test_chat_templates_cannot_escape_the_sandbox(attack, base, tmp_path, template):
    template = template.replace("MARKER", str(attack.marker)).replace("question", "messages[0]")
    (base / "chat_template.jinja").write_text("{{ messages[0]['content'] }}" + template)
    with pytest.raises(MultiLoraError):
        multilora.plan(tiny_recipe(tmp_path, base))


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".pt", ".npy", ".bin", ".arrow"])
def test_data_files_of_other_types(attack, tmp_path, model_folder, suffix):
    path = tmp_path / f"data{suffix}"
    write_pickles(attack, path, "plain")
    with pytest.raises(InputError, match=r"expected one of|unknown file type"):
        multilora.plan(tiny_recipe(tmp_path, model_folder, path=str(path)))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_data_files_that_are_pickles(attack, tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    write_pickles(attack, path, "plain")
    with pytest.raises(InputError):
        list(read_records(path))


def test_parquet_with_a_pickled_extension_type(attack, tmp_path):
    """Old versions of pyarrow unpickled the metadata of such a column (CVE-2023-47248)."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(attack),
    }
    column = pa.field("question", pa.string(), metadata=metadata)
    path = tmp_path / "data.parquet"
    parquet.write_table(pa.table([pa.array(["is it even"])], schema=pa.schema([column])), path)
    assert [record for _, record in read_records(path)] == [{"question": "is it even"}]


def test_datasets_with_a_loading_script(attack, tmp_path, model_folder, monkeypatch):
    """Old versions of `datasets` ran the script of a dataset. They also take a local folder for `owner/name`."""
    folder = tmp_path / "owner" / "scripted"
    folder.mkdir(parents=True)
    (folder / "scripted.py").write_text(attack.python)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="scripts are no longer supported"):
        multilora.plan(tiny_recipe(tmp_path, model_folder, path="hub:owner/scripted"))


@pytest.mark.parametrize("split", ["../outside", "/etc/passwd", "train/../../outside"])
def test_splits_cannot_leave_the_folder_of_the_data(tmp_path, model_folder, split):
    folder = tmp_path / "inside"
    folder.mkdir()
    write_jsonl(tmp_path / "outside.jsonl", [{"question": "secret", "answer": "secret"}])
    write_jsonl(folder / "train.jsonl", [{"question": "is it even", "answer": "yes"}])
    with pytest.raises(InputError, match="expected a file"):
        multilora.plan(tiny_recipe(tmp_path, model_folder, path=str(folder), split=split))


# Models and tokenizers


@pickles
def test_base_weights_that_are_pickles(attack, base, kind):
    (base / "model.safetensors").unlink()
    write_pickles(attack, base / "pytorch_model.bin", kind)
    with pytest.raises(MultiLoraError):
        load_and_wrap(base)


def load_and_wrap(folder):
    from multilora.foreign_errors import own_errors

    return own_errors(load)(folder)


@pytest.mark.parametrize("shard", ["shard.bin", "../outside.bin", "shard.safetensors"])
@pytest.mark.parametrize("index", ["pytorch_model.bin.index.json", "model.safetensors.index.json"])
def test_base_shards_that_are_pickles(attack, base, shard, index):
    names = list(load(base).state_dict())
    (base / "model.safetensors").unlink()
    write_pickles(attack, base / shard, "zip")
    (base / index).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)}))
    with pytest.raises(MultiLoraError):
        load_and_wrap(base)


def test_base_weights_in_a_plain_state_dict_are_loaded(base):
    """A .bin file is loaded, but only tensors in it: the attacks above fail because of what is in them."""
    state = load(base).state_dict()
    (base / "model.safetensors").unlink()
    torch.save(state, base / "pytorch_model.bin")
    assert all(torch.equal(value, state[name]) for name, value in load(base).state_dict().items())


REMOTE_MODEL = """
from transformers import LlamaConfig, LlamaForCausalLM
class EvilConfig(LlamaConfig):
    model_type = "evil"
class EvilModel(LlamaForCausalLM):
    config_class = EvilConfig
"""


@pytest.mark.parametrize("model_type", ["evil", "llama"])
def test_hub_code_is_off_by_default(attack, base, tmp_path, model_type, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers may ask
    classes = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    edit_json(base / "config.json", auto_map=classes, model_type=model_type)
    (base / "evil.py").write_text(attack.python + REMOTE_MODEL)
    (base / "custom_generate").mkdir()
    (base / "custom_generate" / "generate.py").write_text(attack.python + "def generate(*_, **__): ...\n")
    recipe = tiny_recipe(tmp_path, base)
    if model_type == "evil":
        with pytest.raises(InputError, match="cannot load"):
            multilora.train(recipe)
    else:  # the class of transformers is used
        multilora.evaluate(multilora.train(recipe))
    assert not attack.succeeded
    with_code = ModelSection(name_or_path=str(base), trust_remote_code=True)
    load_base(with_code)
    assert attack.succeeded  # trusted: the recipe asks for it
    attack.clear()


def test_tokenizer_code_is_off_by_default(attack, base, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (base / "evil.py").write_text(attack.python + "class EvilTokenizer: ...\n")
    edit_json(
        base / "tokenizer_config.json",
        auto_map={"AutoTokenizer": [None, "evil.EvilTokenizer"]},
        tokenizer_class="EvilTokenizer",
    )
    with pytest.raises(InputError, match="cannot load"):
        multilora.plan(tiny_recipe(tmp_path, base))


# Adapters and run directories


@pickles
def test_adapters_that_are_pickles(attack, run, kind):
    (run.weights / "adapter_model.safetensors").unlink()
    write_pickles(attack, run.weights / "adapter_model.bin", kind)
    for use in (multilora.evaluate, multilora.analyze, lambda run: multilora.export_lora(run, run.path / "out")):
        with pytest.raises(MultiLoraError):
            use(run)


@pickles
def test_adapters_beside_the_base_that_are_pickles(attack, base, run, kind):
    """transformers loads an adapter that it finds in the folder of a base."""
    shutil.copy(run.weights / "adapter_config.json", base)
    write_pickles(attack, base / "adapter_model.bin", kind)
    with pytest.raises(MultiLoraError):
        load_and_wrap(base)


def test_adapter_configs_that_import_modules(attack, run, tmp_path, monkeypatch):
    (tmp_path / "evil_core.py").write_text(attack.python)
    monkeypatch.syspath_prepend(tmp_path)
    lora = multilora.export_lora(run, tmp_path / "lora")
    shutil.rmtree(run.weights)
    shutil.copytree(lora, run.weights)
    edit_json(
        run.weights / "adapter_config.json",
        megatron_config={"tensor_model_parallel_size": 1},
        megatron_core="evil_core",
        auto_mapping={"base_model_class": "X", "parent_library": "evil_core"},
    )
    with pytest.raises(MultiLoraError, match=r"megatron_core.*valid prefix"):
        multilora.analyze(run)


def test_full_models_of_a_run_that_are_pickles(attack, tmp_path, model_folder):
    recipe = tiny_recipe(tmp_path, model_folder) | {"adapter": {"method": "full"}}
    run = multilora.train(recipe)
    (run.weights / "model.safetensors").unlink()
    write_pickles(attack, run.weights / "pytorch_model.bin", "zip")
    with pytest.raises(MultiLoraError):
        multilora.analyze(run)


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
@pickles
def test_checkpoints_that_are_pickles(attack, trained, tmp_path, kind, file):
    """The manifest of the checkpoint fits, so that its files are loaded."""
    folder = shutil.copytree(trained.path, tmp_path / "run")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["output_dir"] = str(folder)
    shutil.rmtree(folder / "adapter")
    shutil.rmtree(folder / "checkpoints" / "checkpoint-4", ignore_errors=True)
    checkpoint = folder / "checkpoints" / "checkpoint-2"
    assert (checkpoint / file).is_file()
    write_pickles(attack, checkpoint / file, kind)
    write_manifest(checkpoint)
    assert last_complete(folder / "checkpoints") == checkpoint
    if file == "training_args.bin":  # never read
        multilora.train(recipe, resume=True)
    else:
        with pytest.raises(MultiLoraError):
            multilora.train(recipe, resume=True)


def test_manifests_cannot_name_other_files(run):
    """A manifest only compares checksums, so a path that leaves the checkpoint changes nothing."""
    checkpoint = run.path / "checkpoints" / "checkpoint-4"
    outside = run.path / "recipe.yaml"
    content = outside.read_bytes()
    edit_json(checkpoint / "manifest.json", **{"../../recipe.yaml": {"bytes": 1, "sha256": "0"}})
    assert last_complete(run.path / "checkpoints") != checkpoint
    assert outside.read_bytes() == content


# The document


def test_every_test_of_the_document_exists_and_every_test_is_in_it():
    named = set(re.findall(r"`(test_\w+)`", DOCUMENT.read_text(encoding="utf-8")))
    tests = {name for name in globals() if name.startswith("test_") and "document" not in name}
    assert named == tests
