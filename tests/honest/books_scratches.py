"""Cells that fail at the learner's as well."""

from honest import early, honest

early("division", "1 / 0")
early("interrupted", "raise KeyboardInterrupt")
early("syntax", "def f(:\n    pass")
early("unfinished", "for i in range(3):")
early("answer_of_an_experiment", "print(lora_answers[0])\ncurves['loss'].plot()")
early("exit_called", "exit()")
early("os_exit", "import os\nos._exit(1)")
early("restarts_its_kernel", "import os\nos.kill(os.getpid(), 9)", "as is told for Colab")
early("aborts", "import ctypes\nctypes.string_at(0)", "a crash")
early("recursion", "def f():\n    return f()\nf()")
early("asks", "n = int(input('rank? '))\nwhile n not in (4, 8):\n    n = int(input('again? '))")
early("missing_file", "state = torch.load('adapter.pt')\nimport json\njson.load(open('x.json'))")
early("dataset_not_here", "from datasets import load_dataset\nd = load_dataset('imdb')")
early("markdown_as_code", "## My notes\n- LoRA has *two* matrices\n- that is all")
early("shell_without_mark", "pip install seaborn")
early("deletes_names", "x = 1\ndel x\ndel y")
early("asks_for_a_password", "import getpass\ngetpass.getpass()")
early("breakpoint_left", "breakpoint()", "a debugger waits for a person")
early("unknown_cell_magic", "%%no_such_magic\nx")
early("html_repr_that_exits", "class R:\n    def _repr_html_(self): raise SystemExit\nR()")
early("lab_5_interrupt", "raise KeyboardInterrupt", lab="05_rank")


@honest()
def fails_all_over(book):
    """A failing cell behind each answer."""
    for name in ("lora_forward", "LoRALinear", "inject", "step_flops", "merge_"):
        book.wrap(name, f"{name}()")
    book.last("undefined")
