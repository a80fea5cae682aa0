"""The first cell of a notebook in a simulated Colab: nothing of the course, other versions of the
libraries, `google.colab`, no folder of ours. No network: git and pip are sent to local copies."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# from Colab's list of January 2026 (googlecolab/backend-info), as far as it meets our needs
COLAB = """
accelerate==1.12.0 datasets==4.0.0 filelock==3.20.3 google-colab==1.0.0 ipykernel==6.17.1
ipython==7.34.0 ipywidgets==7.7.1 jinja2==3.1.6 matplotlib==3.10.0 numpy==2.0.2 pandas==2.2.2
peft==0.18.1 platformdirs==4.5.1 psutil==5.9.5 pygments==2.19.2 rich==13.9.4 safetensors==0.7.0
torch==2.9.0+cu126 torchao==0.10.0 transformers==4.57.6 typer==0.21.1
"""
BOOK = nbformat.read(ROOT / "notebooks/02_lora.ipynb", 4)
FIRST = BOOK.cells[1].source
LACKS = {"bitsandbytes", "gguf", "hassil", "home-assistant-intents", "transformers", "trl"}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Environment variables that lead the course's address to a repository with this tree."""
    tree = tmp_path_factory.mktemp("published")
    ignore = shutil.ignore_patterns("__pycache__", "build")
    for name in ("labkit", "solutions"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    author = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
    commit = [*author, "commit", "-qm", "All of it"]
    for command in (["init", "-q"], ["add", "."], commit, ["tag", f"v{PROJECT['version']}"]):
        subprocess.run(["git", *command], cwd=tree, check=True)
    config = {f"url.file://{tree}.insteadOf": PROJECT["urls"]["Repository"], "safe.directory": "*"}
    found = {"GIT_CONFIG_COUNT": "2"}
    for i, (key, value) in enumerate(config.items()):
        found |= {f"GIT_CONFIG_KEY_{i}": key, f"GIT_CONFIG_VALUE_{i}": value}
    return found


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A folder that pip takes for its index: the newest of all that we need, and the builder."""
    folder = tmp_path_factory.mktemp("wheels")
    repack("hatchling", folder)  # pip builds labkit with it
    for need in needs("lora-labs"):
        version = importlib.metadata.version(need.name)
        name = f"{need.name.replace('-', '_')}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(folder / name, "w") as archive:
            for file, text in files_of(need.name, version).items():
                archive.writestr(file, text)
    return folder


def needs(name):
    """What an installed package requires, extras aside: a list of requirements."""
    found = map(Requirement, importlib.metadata.requires(name) or [])
    return [need for need in found if not need.marker or need.marker.evaluate({"extra": ""})]


def repack(name, folder):
    """Make the wheels of an installed package and of what it requires again."""
    for need in needs(name):
        repack(need.name, folder)
    dist = importlib.metadata.distribution(name)
    tags = re.findall(r"^Tag: (.+)$", dist.read_text("WHEEL"), re.MULTILINE)
    path = folder / f"{name.replace('-', '_')}-{dist.version}-{max(tags)}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in dist.files:
            if ".." not in file.parts and file.suffix != ".pyc":
                archive.write(file.locate(), str(file))


def files_of(name, version):
    """`{path: text}` of a package that is a module with its version and nothing else."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    return {
        f"{module.replace('google_', 'google/')}/__init__.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }


def put(site, *packages):
    for package in packages:
        for file, text in files_of(*package.split("==")).items():
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).write_text(text)


def make_environment(folder):
    """A virtual environment with pip and nothing else: its python and its site-packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for part in {file.parts[0] for file in importlib.metadata.files("pip")} - {".."}:
        shutil.copytree(importlib.metadata.distribution("pip").locate_file(part), site / part)
    return folder / "bin" / "python", site


def environment(home, published, wheels):
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1", "HF_HUB_OFFLINE": "1"}
    return kept | pip | quiet | published | {"HOME": str(home)}


def state(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def colab(tmp_path, published, wheels):
    """`colab(code, **variables)`: what the code prints there, which changes no installation."""
    python, site = make_environment(tmp_path / "colab")
    put(site, *COLAB.split())
    for name in ("home", "content"):
        (tmp_path / name).mkdir()

    def run(code, **variables):
        before = state(tmp_path / "colab")
        env = environment(tmp_path / "home", published, wheels) | variables
        command, place = [python, "-c", code], tmp_path / "content"
        done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)
        assert state(tmp_path / "colab") == before, "the installation was changed"
        assert not list(place.iterdir())
        return done.stdout, done.stderr

    return run


LOOK = """
import json, importlib.metadata, pathlib, labkit, torch, transformers, trl, google.colab
print(json.dumps({m.__name__: [m.__file__, m.__version__] for m in (torch, transformers, trl)}))
print((pathlib.Path(labkit.__file__).parent / "_solutions/02_lora.ipynb").exists())
"""
TWICE = f"""
import os
cell = {FIRST!r}
try: exec(cell)
except Exception as error: print(error._render_traceback_())
os.environ["PIP_FIND_LINKS"] = os.environ["ALL_WHEELS"]
exec(cell)
"""


def test_what_is_missing_comes_beside_what_is_there_if_need_be_the_second_time(
    colab, tmp_path, wheels
):
    """A library that does not come is one line, and the cell can run again."""
    loaded = "import transformers\n"  # as Colab's own start imports some
    some = tmp_path / "some"
    shutil.copytree(wheels, some, ignore=shutil.ignore_patterns("trl*"))
    variables = {"PIP_FIND_LINKS": str(some), "ALL_WHEELS": str(wheels)}
    out, err = colab(loaded + TWICE + LOOK, **variables)
    assert err == ""
    failed, bringing, done, modules, has_solutions = out.splitlines()
    assert re.search(r"✗ The libraries could not be installed\. pip says: .*trl", failed)
    assert set(re.findall(r"([\w-]+)==", bringing)) == LACKS
    assert "unchanged" in done and has_solutions == "True"
    found = json.loads(modules)
    assert f"torch=={found['torch'][1]}" in COLAB and "site-packages" in found["torch"][0]
    assert found["transformers"][0].startswith(str(tmp_path / "home/.lora-labs/site-packages"))
    assert found["transformers"][1] == importlib.metadata.version("transformers")
    again, err = colab(loaded + FIRST + LOOK)  # the kernel was restarted
    assert again.splitlines() == [done, modules, has_solutions] and err == ""


def test_an_address_that_does_not_answer_is_one_line_at_the_end(colab):
    out, err = colab(FIRST, GIT_CONFIG_KEY_0="url.file:///nowhere.insteadOf")
    assert out.splitlines()[-1].startswith("✗ The course could not be fetched")
    assert "Traceback" not in err


def test_in_a_clone_another_python_is_named_and_nothing_is_fetched(tmp_path):
    (tmp_path / "labkit").mkdir()
    (tmp_path / "notebooks").mkdir()
    bare = [sys.executable, "-I", "-S", "-c", FIRST]  # -S: none of what is installed
    told = subprocess.run(bare, cwd=tmp_path / "notebooks", capture_output=True, text=True)
    assert told.stdout.startswith("✗ This kernel is not the course's Python.")
    assert told.stdout.count("\n") == 1 and told.stderr == ""


@pytest.fixture
def kernel(tmp_path, published, monkeypatch):
    """The name of a kernel in a Colab of this Python with our real libraries, but for two."""
    python, site = make_environment(tmp_path / "colab")
    lacks = ("hassil", "home_assistant_intents")
    hidden = ("labkit", "lora_labs", "torchao", "google", *lacks)
    for entry in Path(importlib.metadata.distribution("torch").locate_file("")).iterdir():
        known = entry.name.startswith(hidden) or (site / entry.name).exists()
        if not known and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    put(site, "google-colab==1.0.0", "torchao==0.10.0")
    (tmp_path / "wheels").mkdir()
    for name in ("hatchling", *lacks):
        repack(name, tmp_path / "wheels")
    spec = {"display_name": "Colab", "language": "python"}
    spec["argv"] = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec["env"] = environment(tmp_path, published, tmp_path / "wheels")
    spec["env"] |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    (tmp_path / "kernels/colab").mkdir(parents=True)
    (tmp_path / "kernels/colab/kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    return "colab"


ADAPT = """
import peft, transformers
config = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8,
    num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
small = transformers.LlamaForCausalLM(config)
peft.get_peft_model(small, peft.LoraConfig(target_modules=["q_proj"])).print_trainable_parameters()
import dill, hassil, home_assistant_intents, torch
print(torch.__file__, hassil.__file__, "by name" if len(dill.dumps(hassil)) < 200 else "by value")
"""


@pytest.mark.thorough
def test_the_first_cells_of_a_lab_show_pictures_and_reveal(kernel, tmp_path):
    (last,) = [i for i, cell in enumerate(BOOK.cells) if "figures.low_rank(" in cell.source]
    more = ['lab.reveal("2.1")', "check.matches_dense(lora_forward)", ADAPT]
    more = [nbformat.v4.new_code_cell(code) for code in more]
    book = nbformat.v4.new_notebook(cells=BOOK.cells[: last + 1] + more)
    (tmp_path / "content").mkdir()
    place = {"metadata": {"path": str(tmp_path / "content")}}
    NotebookClient(book, kernel_name=kernel, timeout=300, resources=place).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    told = "".join(output.get("text", "") for output in outputs)
    assert "Installing hassil==" in told and "Lab 2" in told
    assert "2.1 is revealed" in told and "✓ 2.1" in told
    pictures = [output.get("data", {}).get("image/png", "") for output in outputs]
    assert [len(picture) > 5000 for picture in pictures if picture] == [True]
    assert f"{tmp_path}/colab/" in told and f"{tmp_path}/.lora-labs/site-packages/hassil" in told
    assert "by name" in told, "datasets hashes what it maps by dill, which must know our folder"
    assert "trainable params" in told, "peft works beside the torchao of Colab"
