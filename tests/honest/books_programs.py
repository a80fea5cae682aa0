"""Files as other programs write them."""

import copy

from attack import code_cell, source
from honest import as_json, honest


def _lines(book):
    """Sources as lists of lines, which is what most programs write."""
    for cell in book.cells:
        cell["source"] = source(cell).splitlines(keepends=True)


@honest()
def colab(book):
    """Colab's metadata, form fields, ids and outputs that hold a widget's state."""
    widgets = {"application/vnd.jupyter.widget-state+json": {"a1": {"model_name": "HTMLModel"}}}
    book.nb["metadata"] = {"accelerator": "GPU", "colab": {"gpuType": "T4"}, "widgets": widgets}
    book.nb["nbformat_minor"] = 0
    book.early('#@title Settings { run: "auto" }\nrank = 8 #@param {type:"slider", min:1, max:64}')
    for i, cell in enumerate(book.cells):
        cell["metadata"] = {"id": f"x{i}Yz_", "colab": {"base_uri": "https://localhost:8080/"}}
    _lines(book)


@honest()
def kaggle(book):
    """Kaggle's first cell, and the times that it writes into each one."""
    book.first(
        "import numpy as np # linear algebra\nimport pandas as pd # data processing\nimport os\n"
        "for dirname, _, filenames in os.walk('/kaggle/input'):\n    for filename in filenames:\n"
        "        print(os.path.join(dirname, filename))\n"
        "df = pd.read_csv('/kaggle/input/home/train.csv')"
    )
    book.nb["metadata"] |= {"kaggle": {"accelerator": "nvidiaTeslaT4", "isInternetEnabled": True}}
    times = {"iopub.status.busy": "2026-11-02T10:00:00Z", "shell.execute_reply": "2026-11-02"}
    for cell in book.cells:
        cell["metadata"] = {"execution": times, "trusted": True, "_uuid": "8f2839f25d086af7"}


@honest()
def vs_code(book):
    """Cells with a language, a byte order mark and the line ends of Windows."""
    for cell in book.cells:
        cell["metadata"] = {"vscode": {"languageId": "python"}, "notebookRunGroups": {"k": "1"}}
        cell["source"] = source(cell).replace("\n", "\r\n").splitlines(keepends=True)
    text = as_json(book, indent=1, ensure_ascii=False)
    return b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()


@honest()
def windows_line_ends_and_magics(book):
    """The last line of each cell keeps its \\r."""
    book.early("%matplotlib inline\n!ls\nfiles = !ls\nx = 1")
    for cell in book.cells:
        cell["source"] = source(cell).replace("\n", "\r\n") + "\r\n"


@honest()
def jupyterlab(book):
    """Ids that are the same, slides and a debugger's traces."""
    book.nb["nbformat_minor"] = 5
    book.nb["metadata"] |= {"toc-autonumbering": True, "debugger": {"breakpoints": []}}
    for cell in book.cells:
        cell["id"] = "same"
        tags = cell["metadata"].get("tags", [])
        cell["metadata"] = {"tags": [*tags, "hide-input"], "slideshow": {"slide_type": "subslide"}}


@honest()
def no_metadata_at_all(book):
    """A file that somebody's script wrote."""
    del book.nb["metadata"], book.nb["nbformat_minor"]
    for cell in book.cells:
        for key in ("metadata", "outputs", "execution_count"):
            cell.pop(key, None)


@honest()
def outputs_of_megabytes(book):
    """Pictures of megabytes, progress bars and tracebacks in the outputs."""
    picture = {"output_type": "display_data", "data": {"image/png": "A" * 1_500_000}}
    text = {"output_type": "stream", "name": "stderr", "text": ["100%|████| 45/45\r"] * 20_000}
    error = {"output_type": "error", "ename": "KeyError", "evalue": "'x'", "traceback": ["\x1b[0m"]}
    for cell in [c for c in book.cells if c["cell_type"] == "code"][::5]:
        cell["outputs"] = [picture, text, error]
        cell["execution_count"] = 217


@honest()
def plain_text_between(book):
    """Text, raw and empty cells between all others, and an attached picture."""
    text = {"cell_type": "markdown", "metadata": {}, "source": "## def lora_forward(x): wrong!"}
    raw = {"cell_type": "raw", "metadata": {}, "source": "def lora_forward(x): return None"}
    attached = text | {"attachments": {"a.png": {"image/png": "AAAA"}}, "source": "![a](a.png)"}
    book.cells[:] = [x for c in book.cells for x in (c, text, raw, attached, code_cell(""))]


@honest()
def every_cell_twice_in_another_order(book):
    answers = [c for c in book.cells if source(c).startswith(("def ", "class "))]
    book.cells += copy.deepcopy(answers[::-1])


@honest()
def no_line_ends_at_all(book):
    """Sources as lists whose lines lost their ends would be one line; as one text they stand."""
    for cell in book.cells:
        cell["source"] = [source(cell)]
    return as_json(book, separators=(",", ":")).encode()


@honest()
def made_by_nbconvert(book):
    """Notebook from a script: In[ ] marks, a shebang, a coding line and a long docstring."""
    for cell in book.cells:
        if cell["cell_type"] == "code" and not source(cell).startswith("if lab"):
            cell["source"] = "#!/usr/bin/env python\n# coding: utf-8\n# In[7]:\n" + source(cell)


@honest()
def three_notebooks_in_one(book):
    """Somebody merged labs: the last one is the one with the most answers."""
    book.early("def best_rank_r(W, r):\n    return W\n\ndef relative_error(W, r):\n    return 0.0")


@honest()
def cell_split(book):
    """The two functions of one exercise in two cells."""
    first, second = source(book.cell("merge_")).split("\n\n\n")
    at = book.find("merge_")
    book.cells[at : at + 1] = [code_cell(first), code_cell("x = 1"), code_cell(second)]
