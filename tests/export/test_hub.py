"""Uploads to the hub, to a stand-in of it."""

from __future__ import annotations

import json

import pytest
from hub_server import hub_server

import multilora
from multilora.errors import InputError, RunError
from multilora.export.hub import check_hub, push_to_hub


@pytest.fixture
def hub(monkeypatch):
    with hub_server() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", server.address)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        yield server


@pytest.fixture
def adapter(tmp_path):
    """A folder with what an export writes, small."""
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)))
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n# lora\n")
    return folder


def test_a_folder_is_uploaded_as_it_is(hub, adapter, caplog):
    address = push_to_hub(adapter, "owner/name", private=True)
    assert address == f"{hub.address}/owner/name"
    assert hub.repositories == {"owner/name": True}
    assert hub.files == {path.name: path.read_bytes() for path in adapter.iterdir()}
    assert not caplog.messages


def test_a_file_is_uploaded(hub, tmp_path):
    (tmp_path / "lora.gguf").write_bytes(b"GGUF")
    push_to_hub(tmp_path / "lora.gguf", "owner/name")
    assert hub.files == {"lora.gguf": b"GGUF"}
    assert hub.repositories == {"owner/name": False}


def test_a_base_on_this_machine_is_reported(hub, adapter, caplog):
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/models/base"}))
    push_to_hub(adapter, "owner/name")
    assert any("its base is /models/base on this machine" in message for message in caplog.messages)


def test_a_failed_upload_says_how_to_try_again(hub, adapter):
    hub.accepts = False
    with pytest.raises(RunError, match=r"the upload failed .* `hf upload owner/name .*lora` can upload it later"):
        push_to_hub(adapter, "owner/name")


@pytest.mark.parametrize("name", ["name", "a/b/c", "owner/na me", "owner/.."])
def test_names_of_repositories(hub, name):
    with pytest.raises(InputError, match="--push-to-hub"):
        check_hub(name)


def test_without_a_token_nothing_is_exported(hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match="hf auth login"):
        check_hub("owner/name")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match="refuses or does not answer"):
        check_hub("owner/name")


def test_the_command_uploads(hub, recipe, tmp_path, monkeypatch, capsys):
    from typer.testing import CliRunner

    from multilora.cli.app import app

    run = multilora.train(recipe)
    out = tmp_path / "out"
    command = ["export", str(run.path), "--to", "lora", "--out", str(out), "--push-to-hub", "owner/name"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert f"uploaded: {hub.address}/owner/name" in done.stdout
    assert set(hub.files) == {path.name for path in out.iterdir()}
