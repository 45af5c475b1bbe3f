"""Adapter folders that are damaged, incomplete, renamed or of something else: refused, and nothing is written."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import make_base, scramble
from conftest import make_llama, make_tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from multilora import MultiLoraConfig, export_lora
from multilora.errors import InputError
from multilora.files import checksum

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("damaged") / "base"
    make_base("llama").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(params=["lora", "multilora"])
def adapter(request, tmp_path, base_folder) -> Path:
    make = {"lora": LoraConfig, "multilora": MultiLoraConfig}[request.param]
    base = type(make_base("llama")).from_pretrained(base_folder)
    scramble(
        get_peft_model(base, make(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    ).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def write(name, content):
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def cut(name):
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def remove(name):
    return lambda folder: (folder / name).unlink()


def config(**changes: Any):
    def damage(folder: Path) -> None:
        values = {**json.loads((folder / CONFIG).read_text()), **changes}
        (folder / CONFIG).write_text(json.dumps({key: value for key, value in values.items() if value != "-"}))

    return damage


def weights(change):
    def damage(folder: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
        save_file(change(tensors), folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def first(tensors: dict[str, torch.Tensor]) -> str:
    return min(tensors)


def one_nan(tensors):
    tensors[first(tensors)].view(-1)[0] = float("nan")
    return tensors


def one_turned(tensors):
    name = first(tensors)
    return {**tensors, name: tensors[name].mT.contiguous()}


def without_one(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != first(tensors)}


def one_more(tensors):
    return {**tensors, "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.ones(4, 32)}


def renamed(tensors):
    return {name.replace("self_attn", "attention"): tensor for name, tensor in tensors.items()}


def short_names(tensors):
    return {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}


def of_a_model(tensors):
    return {name: tensor.clone() for name, tensor in make_llama().state_dict().items()}


class Code:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"weight": Code()}))


def other_base(**options):
    def damage(folder: Path) -> None:
        make_llama(**options).save_pretrained(folder.parent / "other")
        config(base_model_name_or_path=str(folder.parent / "other"))(folder)

    return damage


def damaged_base(folder: Path) -> None:
    (folder.parent / "other").mkdir()
    (folder.parent / "other" / "config.json").write_text("{")
    config(base_model_name_or_path=str(folder.parent / "other"))(folder)


def an_adapter_as_base(folder: Path) -> None:
    config(base_model_name_or_path=str(folder))(folder)


# what was done to the folder, damage, what the message says
DAMAGES = [
    ("config empty", write(CONFIG, ""), "is not the config of a PEFT adapter"),
    ("config cut", cut(CONFIG), "is not the config of a PEFT adapter"),
    ("config is binary", write(CONFIG, bytes(range(256))), "is not the config of a PEFT adapter"),
    ("config is a list", write(CONFIG, "[1, 2]"), "is not the config of a PEFT adapter"),
    ("config missing", remove(CONFIG), "no recipe.yaml here"),
    ("unknown method", config(peft_type="NEXT_YEAR"), "no method 'NEXT_YEAR'"),
    ("another method", config(peft_type="IA3"), "method `ia3` has no low-rank factors"),
    ("rank zero", config(r=0), "r.* is 0|should be a positive integer"),
    ("rank of another adapter", config(r=5), "in another shape"),
    ("rank is text", config(r="four"), "r is 'four', expected"),
    ("alpha is not a number", config(lora_alpha=float("nan")), "nan|NaN"),
    ("other modules", config(target_modules=["k_proj"]), "no weights for .*k_proj.* and weights for .*q_proj"),
    ("fewer modules", config(target_modules=["q_proj"]), "weights for .*v_proj"),
    ("unknown modules", config(target_modules=["query"]), "does not fit the base"),
    ("changed base", config(init_lora_weights="pissa"), "changes the base|unexpected|pissa"),
    ("weights missing", remove(WEIGHTS), f"no {WEIGHTS} here"),
    ("weights empty", write(WEIGHTS, b""), "weights cannot be read.*damaged"),
    ("weights cut", cut(WEIGHTS), "weights cannot be read.*damaged"),
    ("weights are binary", write(WEIGHTS, bytes(range(256)) * 9), "weights cannot be read.*damaged"),
    ("a pickle that runs code", pickled, "weights cannot be read"),
    ("one tensor missing", weights(without_one), "no weights for .*q_proj.*incomplete"),
    ("no tensors", weights(lambda tensors: {}), "no weights for .*incomplete"),
    ("one tensor of another layer", weights(one_more), "1 modules that this base does not have"),
    ("one tensor turned", weights(one_turned), "1 of .* parameters in another shape"),
    ("one NaN", weights(one_nan), "NaN or infinite"),
    ("renamed modules", weights(renamed), r"modules that this base does not have \(model.layers.0.attention"),
    ("names without prefix", weights(short_names), "modules that this base does not have|no weights for"),
    ("weights of a model", weights(of_a_model), "modules that this base does not have|no weights for"),
    ("no base", config(base_model_name_or_path=None), "does not say which base.*--base"),
    ("base that is not here", config(base_model_name_or_path="/nowhere/base"), "cannot load '/nowhere/base'"),
    ("damaged base", damaged_base, "cannot load"),
    ("an adapter as base", an_adapter_as_base, "cannot load"),
    ("wider base", other_base(hidden_size=64), "in another shape"),
    ("base with fewer layers", other_base(num_hidden_layers=1), "modules that this base does not have"),
    ("unknown task", config(task_type="DREAMING"), "DREAMING"),
]


@pytest.mark.parametrize(("damage", "message"), [row[1:] for row in DAMAGES], ids=[row[0] for row in DAMAGES])
def test_a_damaged_folder_is_refused(adapter, tmp_path, damage, message):
    if message.startswith("changes the base") and "multilora" in (adapter / CONFIG).read_text().lower():
        pytest.skip("an option of LoRA")
    damage(adapter)
    before = {file: checksum(file) for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=message) as caught:
        export_lora(adapter, tmp_path / "new" / "out")
    assert len(str(caught.value)) < 1000
    assert {file: checksum(file) for file in tmp_path.rglob("*") if file.is_file()} == before
    assert not (tmp_path / "new").exists()


def test_what_is_no_adapter_folder_is_refused(tmp_path, base_folder):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "file", tmp_path / "empty", tmp_path / "nothing", base_folder):
        with pytest.raises(InputError, match="here; expected"):
            export_lora(source, tmp_path / "out")


@pytest.mark.parametrize("adapter", ["lora"], indirect=True)
def test_nothing_is_overwritten(adapter, tmp_path):
    for out in (adapter, tmp_path, adapter / CONFIG):
        before = {file: checksum(file) for file in tmp_path.rglob("*") if file.is_file()}
        with pytest.raises(InputError, match=r"is not empty|is a file"):
            export_lora(adapter, out)
        assert {file: checksum(file) for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("adapter", ["lora"], indirect=True)
def test_the_base_can_be_given(adapter, tmp_path, base_folder):
    config(base_model_name_or_path="owner/not-here")(adapter)
    folder = export_lora(adapter, tmp_path / "out", base=str(base_folder))
    assert json.loads((folder / CONFIG).read_text())["base_model_name_or_path"] == "owner/not-here"
