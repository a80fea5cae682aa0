"""An adapter's folder becomes files: whole or not at all, measured, with what serves them."""

import hashlib
import json
import shutil
from copy import copy
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from test_gguf import read
from transformers import AutoModelForCausalLM, AutoTokenizer

from labkit.data.tokens import PLAIN
from labkit.errors import LabError
from labkit.ship import adapter, gguf, measure, recipes, shipping
from labkit.ship.shipping import Asked
from labkit.training import arguments, hardware, loop, models

SETTINGS = {"max_length": 512, "held_out": 0.2, "seed": 0}
ROWS = [("turn on the lamp", "it's on"), ("the kitchen", "12 times"), ("see the lamp", "on")]


@pytest.fixture(scope="module")
def shelf(make, adapted, tokenizer, tmp_path_factory):
    """A folder with `base`, a tiny Llama, and `mine`, an adapter that names it by its path."""
    made = tmp_path_factory.mktemp("shelf")
    model = make(vocab_size=320)  # rows of whole blocks of 32
    model.config.dtype = torch.bfloat16
    model.to(torch.bfloat16).save_pretrained(made / "base")
    for name in ("base", "mine"):
        tokenizer.save_pretrained(made / name)
    adapted(models.load(made / "base", torch.float32)[0], std=0.1).save_pretrained(made / "mine")
    lines = [json.dumps({"question": q, "answer": a}) for q, a in ROWS]
    (made / "mine.jsonl").write_text("\n".join(lines), "utf-8")
    return made


@pytest.fixture(scope="module")
def shipped(shelf):
    """Everything that the command can make, and what it knows of it."""
    asked = Asked(shelf / "mine", shelf / "out", merge=True, apart=True, data=shelf / "mine.jsonl")
    return shelf / "out", shipping.ship(asked), asked


@pytest.fixture
def trained(shelf):
    """The adapter beside its base in fp32."""
    base, _ = models.load(shelf / "base", torch.float32)
    return PeftModel.from_pretrained(base, shelf / "mine").eval()


def test_every_file_is_there_and_the_table_tells_size_and_cost(shipped):
    out, facts, _ = shipped
    kinds = ("bf16", "q8_0", "q4_0")
    names = {f"mine-{kind}.gguf" for kind in kinds} | {"mine-lora.gguf", "base-f16.gguf", "merged"}
    notes = {"README.md", "Modelfile", "Modelfile.apart", "ship.json"}
    assert {file.name for file in out.iterdir()} == names | notes
    rows = {row["file"]: row for row in facts["files"]}
    assert set(rows) == names | {""} and rows[""]["kl"] == 0
    for name in names - {"merged"}:
        assert rows[name]["bytes"] == (out / name).stat().st_size
    sizes = [rows[f"mine-{kind}.gguf"]["bytes"] for kind in kinds]
    costs = [rows[f"mine-{kind}.gguf"]["kl"] for kind in kinds]
    assert sizes == sorted(sizes, reverse=True) and costs == sorted(costs)
    assert rows["merged"]["kl"] == pytest.approx(costs[0]) and 0 < costs[0] < 1e-2 < costs[2]
    assert "3 rows of mine.jsonl" in facts["measured"]
    text = (out / "README.md").read_text("utf-8")
    assert all(f"| {name} |" in text for name in names) and facts["measured"] in text


@pytest.mark.parametrize("test_file", ["", "other.jsonl"])
def test_rows_that_were_trained_on_are_not_called_held_out(shelf, tokenizer, test_file):
    """Beside a file of its own for the test, all of the first one was trained on."""
    file = shelf / "mine.jsonl"
    data = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "test_file": test_file}
    made = replace(adapter.read(shelf / "mine"), facts={"data": data, "settings": SETTINGS})
    rows, told = measure.rows(made, file, tokenizer, {2})
    assert len(rows) == (3 if test_file else 1)
    assert ("held-out rows" in told) == (not test_file)
    assert ("which were trained on: --data other.jsonl" in told) == bool(test_file)


def test_the_cost_is_the_divergence_from_the_adapter_apart(shipped, trained, tokenizer):
    out, facts, _ = shipped
    (row,) = [row for row in facts["files"] if row["file"] == "mine-q4_0.gguf"]
    wanted = divergence(tokenizer, read(out / "mine-q4_0.gguf"), trained)
    assert row["kl"] == pytest.approx(wanted, rel=1e-3)


def test_qlora_is_merged_on_the_cpu_into_its_own_base(shelf, tokenizer, tmp_path, monkeypatch):
    shutil.copytree(shelf / "mine", tmp_path / "mine")
    (tmp_path / "mine/labkit.json").write_text('{"settings": {"method": "qlora"}}', "utf-8")
    monkeypatch.setattr(hardware, "device", lambda: "cuda")  # too small for fp32
    shipping.ship(Asked(tmp_path / "mine", tmp_path / "out", ("f32",), apart=True))
    base, _ = models.load(shelf / "base", torch.float32, "cpu", **arguments.in_4_bits("cpu"))
    assert divergence(tokenizer, read(tmp_path / "out/base-f16.gguf"), base) < 1e-3
    tuned = PeftModel.from_pretrained(base, shelf / "mine").eval()
    assert divergence(tokenizer, read(tmp_path / "out/mine-f32.gguf"), tuned) < 1e-3


def divergence(tokenizer, *models):
    """KL by torch's own function, over the tokens of the answers."""
    logs = []
    for model in models:
        found = []
        for question, answer in ROWS:
            asked = [{"role": "user", "content": question}]
            row = loop.encode(tokenizer, [*asked, {"role": "assistant", "content": answer}])
            with torch.no_grad():
                logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
            found.append(logits[torch.tensor(row["labels"][1:]) != -100].log_softmax(-1))
        logs.append(torch.cat(found))
    return torch.nn.functional.kl_div(*logs, log_target=True, reduction="batchmean").item()


def test_the_plain_model_is_the_merged_one_in_the_base_s_dtype(shipped, trained, tokenizer):
    out, _, _ = shipped
    plain = AutoModelForCausalLM.from_pretrained(out / "merged")
    assert plain.dtype == torch.bfloat16 and not hasattr(plain, "peft_config")
    wanted = trained.merge_and_unload()
    for (name, p), q in zip(wanted.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.to(torch.bfloat16), q), name
    found = AutoTokenizer.from_pretrained(out / "merged")
    assert found.chat_template == tokenizer.chat_template


def test_the_lines_name_the_files(shipped, shelf):
    out, facts, _ = shipped
    words = {
        "llama.cpp": ["-m mine-q8_0.gguf"],
        "llama.cpp, base and adapter": ["-m base-f16.gguf", "--lora mine-lora.gguf"],
        "vLLM": [f" {shelf / 'base'} ", "-rank 8 ", "mine=../mine", "../mine/chat_template.jinja"],
        "transformers": ["./merged"],
        "Ollama": ["create mine -f Modelfile\n"],
        "Ollama, base and adapter": ["create mine -f Modelfile.apart"],
    }
    assert facts["lines"].keys() == words.keys()
    for engine, line in facts["lines"].items():
        assert all(word in line for word in words[engine]), line
    first = (out / "Modelfile.apart").read_text("utf-8").splitlines()[:2]
    assert first == ["FROM ./base-f16.gguf", "ADAPTER ./mine-lora.gguf"]
    assert "--lora a.gguf,b.gguf" in recipes.llama_server("base.gguf", ["a.gguf", "b.gguf"])


def test_the_same_again_is_done_and_another_is_refused(shipped, capsys):
    out, facts, asked = shipped
    before = (out / "ship.json").stat().st_mtime_ns
    assert shipping.ship(asked)["files"] == facts["files"]
    assert "is already done" in capsys.readouterr().err
    with pytest.raises(LabError, match="contains files from other data or settings"):
        shipping.ship(Asked(asked.folder, out, ("f16",)))
    assert (out / "ship.json").stat().st_mtime_ns == before


def test_stopped_in_the_middle_nothing_looks_whole(shelf, tmp_path, monkeypatch):
    asked = Asked(shelf / "mine", tmp_path / "out")
    real = gguf.write_model

    def stopped(model, tokenizer, path, kind):
        if kind == "q4_0":
            raise KeyboardInterrupt
        return real(model, tokenizer, path, kind)

    monkeypatch.setattr(gguf, "write_model", stopped)
    with pytest.raises(KeyboardInterrupt):
        shipping.ship(asked)
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    monkeypatch.undo()
    assert len(shipping.ship(asked)["files"]) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_shipped_is_one_line(shelf, make, tokenizer, tmp_path):
    make("gemma", head_dim=16).save_pretrained(tmp_path / "other")
    make(intermediate_size=64).save_pretrained(tmp_path / "small")
    for name in ("other", "small"):
        tokenizer.save_pretrained(tmp_path / name)
    shutil.copytree(shelf / "mine", tmp_path / "lost")
    config = json.loads((tmp_path / "lost/adapter_config.json").read_text("utf-8"))
    config["base_model_name_or_path"] = "nobody/nothing"
    (tmp_path / "lost/adapter_config.json").write_text(json.dumps(config), "utf-8")
    mine, out = shelf / "mine", tmp_path / "out"
    for asked, said in (
        (Asked(mine, out, base=str(tmp_path / "other")), "--merge` writes a plain model"),
        (Asked(mine, out, base=str(tmp_path / "small")), "does not fit its base"),
        (Asked(tmp_path / "lost", out), "nobody/nothing is neither .* with --base FOLDER"),
        (Asked(mine, out, data=tmp_path / "none.csv"), "no file"),
    ):
        with pytest.raises(LabError, match=f"^[^\n]*{said}[^\n]*$"):
            shipping.ship(asked)
        assert not out.exists()
        shutil.rmtree(tmp_path / "out.partial", ignore_errors=True)


def test_an_adapter_with_more_than_a_and_b_is_merged_alone(shelf, adapted, tmp_path):
    base, _ = models.load(shelf / "base", torch.float32)
    tuned = adapted(base, target_modules=["q_proj"], use_dora=True)
    tuned.save_pretrained(tmp_path / "dora")
    facts = shipping.ship(Asked(tmp_path / "dora", tmp_path / "out", ("f16",)))
    assert [row["file"] for row in facts["files"]] == ["dora-f16.gguf"]
    assert "use_dora" in facts["notes"][0]


UNASKED = "{% if messages[0]['role'] != 'system' %}<s>system\nBe kind.</s>\n{% endif %}"
SAME = "{{ if .System }}<s>system\n{{ .System }}</s>\n{{ end }}{{ if .Prompt }}<s>user\n"
SAME += "{{ .Prompt }}</s>\n<s>assistant\n{{ end }}{{ .Response }}</s>\n"


@pytest.mark.parametrize(
    ("template", "lines", "note"),
    [
        ("OWN", [f'TEMPLATE """{SAME}"""'], ""),
        (UNASKED + "OWN", [f'TEMPLATE """{SAME}"""', 'SYSTEM """Be kind."""'], ""),
        (PLAIN, ["TEMPLATE"], "several turns is rendered differently"),  # it has no end of a turn
        ("{{ messages | length }} {{ messages[-1]['content'] }}", [], "no equivalent in Ollama's"),
    ],
)
def test_ollama_s_template_is_read_off_the_tokenizer_s(tokenizer, template, lines, note):
    other = copy(tokenizer)
    other.chat_template = template.replace("OWN", tokenizer.chat_template)
    told = recipes.modelfile("a.gguf", tokenizer=other)
    assert all(line in told for line in lines)
    notes = [line for line in told.splitlines() if line.startswith("# ")]
    assert len(notes) == bool(note) and note in "".join(notes)


def test_a_system_message_of_one_s_own_is_written_where_ollama_can_read_it():
    for system, written in (
        ("Be brief.", 'SYSTEM """Be brief."""\n'),
        ('Say """ first.\nThen """', 'SYSTEM """Say """ first.\nThen """"""\n'),
        ('Say """ \nfirst.', "ends with three quotation marks"),
    ):
        told = recipes.modelfile("a.gguf", system=system)
        assert written in told and ("SYSTEM" in told) == ("SYSTEM" in written)
