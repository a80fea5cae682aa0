"""Shared by the tests."""

import functools
import os
import re
import shutil
from itertools import combinations

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from labkit import contract

# tiny tensors on many threads spend their time waiting for each other; notebooks run side by side
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

LONG = (  # groups of tests (`xdist_group`, else the file's name), the longest first
    *("attacks", "test_honest", "a judge", "lab07", "06_merging", "03_peft", "08_rewards"),
    *("04_qlora", "07_ship", "05_rank", "test_unsolved", "02_lora", "01_svd"),
    *("wire 07", "test_colab", "test_finetuning", "test_card", "test_processes", "test_simulate"),
    *("test_budget", "test_release", "test_book", "test_jupyterlab", "test_sandbox", "test_train"),
    *("test_killed", "test_train_file", "test_learners", "test_workers"),
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox"]  # it runs as root in a container
FLAGS += ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
# the theme looks for what scrolls 300 ms after the frame in which a window changed its size
SETTLED = """() => new Promise(done => requestAnimationFrame(
  () => requestAnimationFrame(() => setTimeout(done, 400))))"""
AXE = """async () => (await axe.run({preload: false, resultTypes: ["violations"]})).violations
  .filter(found => ["serious", "critical"].includes(found.impact))
  .map(({id, nodes}) => `${id}: ${nodes.length} times, ${nodes[0].html.slice(0, 200)} ` +
                        nodes[0].failureSummary)"""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Of several workers (`-n 2`) one runs all tests of a file, which share what it made.

    What takes long comes first, so that no worker is left with it when the others are done.
    """
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    places = {group: i for i, group in enumerate(LONG)}
    group = {item: item.get_closest_marker("xdist_group").args[0] for item in items}
    items.sort(key=lambda item: places.get(group[item], len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Solved notebooks that run beside the tests are rehearsed; tests are not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_REHEARSAL", "1" if item.path.suffix == ".ipynb" else "0")
        return (yield)


def pytest_itemcollected(item):
    """`-k lab02` finds all tests in whose files lab 2 or an exercise of it is named."""
    item.extra_keyword_matches.update(labs_named(item.path))


@functools.cache
def labs_named(path):
    """The labs that a file of tests names, as "lab02": by number, by stem, or by an exercise."""
    text = path.read_text(encoding="utf-8")
    numbers = re.findall(r"\blab ?0?(\d)\b|\b0(\d)_[a-z]|[\"'✓✗○◐(] ?(\d)\.\d+\b", text)
    return {f"lab0{number}" for found in numbers for number in found if number}


@pytest.fixture(autouse=True)
def fresh_session():
    """Each test begins with no exercise judged; an id that it takes is given back to its check."""
    contract.session.clear()
    contract.session.letters.clear()
    before = dict(contract.NAMES)
    yield
    contract.NAMES.update(before)


@pytest.fixture
def rejects():
    """`rejects(check, *objects)` -> the one-line message that the check answers with."""

    def message(check, *objects):
        with pytest.raises(contract.CheckFailed) as caught:
            check(*objects)
        text = str(caught.value)
        assert text.startswith(f"✗ {check.exercise['id']} "), text
        return text

    return message


@pytest.fixture
def accepts(capsys):
    """`accepts(check, *objects)`: the check prints a pass and the exercise has its points."""

    def judge(check, *objects):
        check(*objects)
        assert capsys.readouterr().out.startswith("✓ ")
        record = contract.session.records[check.exercise["id"]]
        assert record["status"] == "passed"
        assert record["earned"] == record["points"] == check.exercise["points"]

    return judge


@pytest.fixture
def not_written(capsys):
    """`not_written(check, *objects)`: the stub is told from a wrong answer, and nothing raises."""

    def judge(check, *objects):
        check(*objects)
        assert "not written yet" in capsys.readouterr().out
        assert contract.session.records[check.exercise["id"]]["status"] == "missing"

    return judge


@pytest.fixture(scope="session")
def padded_loss():
    """`padded_loss(model, rows)`: transformers' own loss on rows padded right, prompts masked."""

    def loss(model, rows):
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        labels = [torch.tensor(row["labels"]) for row in rows]
        seen = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        labels = pad_sequence(labels, batch_first=True, padding_value=-100)
        ids = pad_sequence(ids, batch_first=True)
        return model(input_ids=ids, attention_mask=seen, labels=labels).loss

    return loss


@pytest.fixture(scope="session")
def too_alike():
    """`too_alike(texts)`: pairs, longer than six words each, that share too many word 3-grams."""

    def pairs(texts, limit=0.3):
        grams = []
        for text in texts:
            words = re.findall(r"\w+", text.lower())
            if len(text.split()) > 6:
                grams.append((text, set(zip(words, words[1:], words[2:], strict=False))))
        return [
            (one, other)
            for (one, ours), (other, theirs) in combinations(grams, 2)
            if not ours.isdisjoint(theirs)  # says at once that most share nothing
            and len(ours & theirs) >= limit * len(ours | theirs)
        ]

    return pairs


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program, args=FLAGS)


@pytest.fixture
def judged_by_axe(browser):
    """`judged_by_axe(folder, names)`: what shuts people out of its pages, and what they fetch.

    Layout hangs on the width, colours on the theme: two of the four pairs see all of both.
    """
    from axe_playwright_python.base import AXE_FILE_PATH

    def faults(folder, names):
        found, page = [], browser.new_page(reduced_motion="reduce", bypass_csp=True)
        page.set_default_timeout(120_000)
        page.on("request", lambda r: r.url.startswith("http") and found.append(f"fetches {r.url}"))
        for name in names:
            page.goto((folder / name).as_uri())
            page.add_script_tag(path=AXE_FILE_PATH)
            for width, theme in ((1440, "light"), (390, "dark")):
                page.set_viewport_size({"width": width, "height": 900})
                page.emulate_media(color_scheme=theme)
                page.evaluate(SETTLED)
                found += [f"{name} {width} {theme}: {fault}" for fault in page.evaluate(AXE)]
        page.close()
        return found

    return faults
