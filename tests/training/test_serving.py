"""A folder is really served, and an OpenAI client gets what the model says here."""

import pytest

from labkit.errors import LabError
from labkit.probes.tiny import language_model
from labkit.training import serving

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


@pytest.fixture
def shop(tmp_path):
    """A folder with a tiny model, and the model itself."""
    model, tokenizer = language_model(seed=3)
    model.generation_config.update(eos_token_id=0, pad_token_id=0)
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path, model, tokenizer


def test_a_client_gets_the_greedy_answer_of_the_model(shop):
    openai = pytest.importorskip("openai")
    folder, model, tokenizer = shop
    ids = tokenizer("turn on the lamp ", return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=6, do_sample=False)
    wanted = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    with serving.transformers_serve(folder) as url:
        client = openai.OpenAI(base_url=url, api_key="none", timeout=60, max_retries=0)
        asked = [{"role": "user", "content": "turn on the lamp"}]
        settings = {"max_tokens": 6, "temperature": 0}
        reply = client.chat.completions.create(model=str(folder), messages=asked, **settings)
    assert reply.choices[0].message.content.split() == wanted.split() != []
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(model=str(folder), messages=asked, **settings)


def test_what_cannot_be_served_is_one_line(tmp_path):
    pytest.importorskip("openai")
    with (
        pytest.raises(LabError, match="transformers serve ended") as caught,
        serving.transformers_serve(tmp_path / "nothing"),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(serving, "NEEDS", ("no_such_package",))
    with (
        pytest.raises(LabError, match=r"no_such_package missing: pip install .*serve"),
        serving.transformers_serve(tmp_path),
    ):
        pass
