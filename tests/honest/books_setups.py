"""Cells of imports in which a line fails: a module, a GPU or a file that is not here."""

from attack import code_cell, source
from honest import early, honest, imports

imports("sklearn_first", "from sklearn.decomposition import TruncatedSVD, PCA")
imports("torch_behind_a_missing_one", "import plotly as sns, numpy as np, torch.nn.functional as F")
imports("tqdm_notebook", "from tqdm.notebook import tqdm\nfor _ in tqdm(range(3)): pass")
imports("widget_backend", "%matplotlib widget\nimport matplotlib.pyplot as plt", "ipympl")
imports("inline_backend", "%matplotlib inline\n%config InlineBackend.figure_format = 'retina'")
imports("colab_files", "from google.colab import files, drive\ndrive.mount('/content/drive')")
imports("gpu_asserted", "import torch\ntorch.cuda.set_device(0)\nx = torch.ones(3).cuda()")
imports("backend_of_apple", "import torch\nx = torch.ones(3, device='mps')")
imports("autoreload", "%load_ext autoreload\n%autoreload 2\n%load_ext tensorboard")
imports(
    "warning_class_of_old_numpy",
    "import warnings\nimport numpy as np\n"
    "warnings.filterwarnings('ignore', category=np.VisibleDeprecationWarning)",
    "the class is gone from numpy 2: AttributeError",
)
imports("reads_a_csv", "import pandas as pd\nframe = pd.read_csv('results.csv')\nframe.head()")
imports("asks_for_a_name", "name = input('Your name: ')\nprint(f'Hello {name}')")
imports("downloads", "import urllib.request\nurllib.request.urlretrieve('http://example.com', 'x')")
imports("installed_first", "!pip install -q plotly\n%pip install -q plotly\nimport plotly as sns")
imports("changes_to_the_drive", "%cd /content/drive/MyDrive/lora-labs\n%ls\n!nvidia-smi")
imports("kernel_asked", "get_ipython().kernel.shell.banner1\nget_ipython().system('ls')")
imports("from_the_future", "from __future__ import annotations")
imports("main_guard", 'if __name__ == "__main__":\n    print("in a notebook")')
imports(
    "backend_set", "import matplotlib\nmatplotlib.use('TkAgg')\nimport matplotlib.pyplot as plt"
)
imports("lab_3_on_a_gpu", "import torch\nprint(torch.cuda.get_device_name(0))", lab="03_peft")
imports("lab_4_widget", "%matplotlib widget", lab="04_qlora")


def _start_of(book):
    return next(cell for cell in book.cells if "labkit.start" in source(cell))


@honest()
def started_within_try(book):
    code = 'try:\n    import labkit\n    lab, check = labkit.start("02_lora")\n'
    _start_of(book)["source"] = code + 'except ImportError:\n    print("no labkit")'


@honest()
def started_by_a_variable(book):
    code = 'import labkit as lk\n\nLAB = "02_lora"\nlab, check = lk.start(LAB)\n'
    _start_of(book)["source"] = code + "DEVICE = torch.device(lab.device)"


@honest()
def started_twice(book):
    book.early('lab, check = labkit.start("02_lora")')
    book.last('import labkit\nlab, check = labkit.start("02_lora")')


@honest()
def everything_in_one_cell(book):
    """Imports, a failing line, and all answers behind it."""
    sources = [source(c) for c in book.cells if c["cell_type"] == "code"]
    plain = [s for s in sources if not s.startswith(("if lab.experiment", "# @title"))]
    book.cells[:] = [code_cell("from google.colab import drive\n" + "\n\n".join(plain))]


@honest()
def device_at_the_top(book):
    early_code = 'device = "cuda" if torch.cuda.is_available() else lab.device\nprint(device)'
    book.early(early_code + "\nif torch.cuda.is_available():\n    model = model.cuda()")


early("starts_another_lab_too", 'import labkit\n_lab, _check = labkit.start("01_svd")')
early("shadows_check_and_lab", "check, lab = None, None", "check lines fail; answers are there")
