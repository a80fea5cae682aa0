"""A file becomes a folder that is of use elsewhere; what would train wrongly is refused."""

import json
import shutil
from dataclasses import replace

import pytest
from peft import AutoPeftModelForCausalLM
from small_training import write_rows
from transformers import AutoTokenizer

from labkit.errors import LabError
from labkit.own import run, stages, trainer
from labkit.own.settings import Asked
from labkit.training import models


@pytest.fixture(scope="module")
def made(folder):
    """What one training left, and the facts that it returned."""
    how = {"model": str(folder / "model"), "learning_rate": 2e-2, "dtype": "float32"}
    out = folder / "adapter"
    asked = Asked(folder / "mine.jsonl", out, batch=8, epochs=4, base_id="nobody/tiny", **how)
    return out, run.train(asked), asked


def test_it_learns_and_says_so_beside_base_and_baselines(made):
    _, facts, _ = made
    scores = facts["scores"]["table"]
    assert list(scores) == ["adapter", "base", "most frequent answer", "nearest training prompt"]
    assert facts["losses"][-1] < 0.7 * facts["losses"][0] and len(facts["losses"]) == 24
    assert scores["adapter"]["loss"] < 0.7 * scores["base"]["loss"]
    assert facts["data"]["trained"] == 48 and facts["data"]["held_out"] == 12


def test_the_folder_names_no_path_and_has_all_that_is_needed(made, folder):
    out, facts, _ = made
    names = {file.name for file in out.iterdir()}
    wanted = {"adapter_config.json", "adapter_model.safetensors", "README.md", "labkit.json"}
    assert wanted | {"tokenizer.json", "chat_template.jinja"} <= names
    for file in out.iterdir():
        assert str(folder).encode() not in file.read_bytes(), file
    card = (out / "README.md").read_text("utf-8")
    assert "base_model: nobody/tiny" in card and facts["data"]["sha256"] in card
    assert "learning_rate: 0.02" in card and "| nearest training prompt |" in card
    assert json.loads((out / "labkit.json").read_text("utf-8"))["losses"] == facts["losses"]
    assert not stages.partial(out).exists()


def test_peft_loads_it_where_the_base_is_found_by_its_id(made, folder, tmp_path, monkeypatch):
    """A relative path stands for the Hub here: the id is looked up in the working folder."""
    shutil.copytree(folder / "model", tmp_path / "nobody" / "tiny")
    shutil.copytree(made[0], tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    model = AutoPeftModelForCausalLM.from_pretrained("adapter")
    tokenizer = AutoTokenizer.from_pretrained("adapter")
    sample = made[1]["scores"]["samples"][0]
    asked = [{"role": "user", "content": sample["prompt"]}]
    how = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    ids = tokenizer.apply_chat_template(asked, **how)
    told = model.generate(**ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    new = told[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(new, skip_special_tokens=True).strip() == sample["adapter"]


def test_the_same_line_again_is_done_and_another_is_refused(made, capsys):
    out, facts, asked = made
    before = (out / "labkit.json").stat().st_mtime_ns
    assert run.train(asked)["losses"] == facts["losses"]
    assert "is already done" in capsys.readouterr().err
    with pytest.raises(LabError, match="contains an adapter from other data or settings"):
        run.train(replace(asked, rank=4))
    assert (out / "labkit.json").stat().st_mtime_ns == before


def test_two_calls_do_not_train_in_one_folder(asked):
    work = stages.partial(asked().out)
    work.mkdir()
    with stages.alone(work), pytest.raises(LabError, match="another process is working there"):
        run.train(asked())
    with stages.alone(work):  # it has been let go
        assert not (work / "made").exists()


def test_what_lies_there_is_never_written_over(asked, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(LabError, match="contains something else: give another --out"):
        run.train(asked())
    stages.begin(tmp_path / "other", "another key")
    with pytest.raises(LabError, match="unfinished work from other data or settings"):
        run.train(asked(out=tmp_path / "other"))


def test_what_would_train_wrongly_is_refused_or_left_out(asked, tmp_path, folder):
    lines = (folder / "mine.jsonl").read_text("utf-8").splitlines()
    lines[4] = json.dumps({"question": "turn on the fan", "answer": ""})
    lines[7] = json.dumps({"question": "turn off the fan", "answer": None})
    file = tmp_path / "faulty.jsonl"
    file.write_text("\n".join(lines), "utf-8")
    with pytest.raises(LabError) as caught:
        run.train(asked(file=file))
    for said in ("an empty answer: line 5", "line 8", "--drop-bad"):
        assert said in str(caught.value)
    assert not (tmp_path / "mine").exists()
    data = run.train(asked(file=file, drop_bad=True, steps=1))["data"]
    assert (data["dropped"], data["trained"] + data["held_out"]) == (2, 58)


def test_a_second_file_is_held_out(asked, tmp_path, folder):
    test = write_rows(tmp_path / "test.jsonl", 9, seed=1)
    facts = run.train(asked(test=test, steps=1))
    assert (facts["data"]["trained"], facts["data"]["held_out"]) == (60, 9)
    leaking = tmp_path / "leaking.jsonl"
    leaking.write_text((folder / "mine.jsonl").read_text("utf-8").splitlines()[0], "utf-8")
    with pytest.raises(LabError, match="a test prompt that is also trained on: line 1 in leaking"):
        run.train(asked(test=leaking, out=tmp_path / "two"))


def test_texts_are_scored_by_their_loss_and_the_progress_is_told(asked, tmp_path, folder, capsys):
    rows = [json.loads(line) for line in (folder / "mine.jsonl").read_text("utf-8").splitlines()]
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": row["question"]}) for row in rows), "utf-8")
    scores = run.train(asked(file=file))["scores"]["table"]
    told = capsys.readouterr().err
    assert "step 1/12 · loss" in told and "left" in told and "step 12/12" in told
    assert list(scores) == ["adapter", "base", "token frequencies"]
    assert scores["adapter"]["loss"] < scores["base"]["loss"]


def test_a_model_that_cannot_be_packed_trains_to_the_same_numbers(asked, tmp_path, monkeypatch):
    packed = run.train(asked())
    monkeypatch.setattr(trainer, "packs", lambda *_: False)
    monkeypatch.setattr("labkit.own.scores.packs", lambda *_: False)
    plain = run.train(asked(out=tmp_path / "plain"))
    assert plain["losses"] == pytest.approx(packed["losses"], abs=1e-4)
    for who, row in packed["scores"]["table"].items():
        assert plain["scores"]["table"][who] == pytest.approx(row, abs=1e-3), who
    assert plain["scores"]["samples"] == packed["scores"]["samples"]


def test_few_rows_are_trained_on_more_often(asked):
    assert [asked(epochs=0).n_steps(n) for n in (48, 160, 1000)] == [60, 60, 375]
    assert asked(epochs=2).n_steps(48) == 12 and asked(epochs=5).n_steps(41) == 30
    assert asked(steps=7).n_steps(48) == 7


def test_bad_folders_are_one_line(asked, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for change, said in (
        ({"model": str(tmp_path / "empty")}, r"has no config\.json"),
        ({"out": tmp_path / "file" / "mine"}, "cannot be created: Not a directory"),
        ({"base_id": "tiny"}, "a hub id has the form ORG/NAME"),
    ):
        with pytest.raises(LabError, match=said):
            run.train(asked(**change))


def test_the_hub_s_name_of_a_folder_is_known_where_it_can_be(tmp_path):
    for name in ("smollm2-135m", models.folder("smollm2-135m")):
        assert models.hub_id(name) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert models.hub_id("/hub/models--org--a-model/snapshots/1f2e") == "org/a-model"
    assert models.hub_id(tmp_path) is None
