"""Magics and lines for the shell."""

from attack import source
from honest import early, honest

early("time_and_timeit", "%time x = sum(range(100))\n%timeit -n 2 -r 1 sum(range(100))")
early("timeit_cell", "%%timeit -n 1 -r 1\nsum(range(100))")
early("bash_cell", "%%bash\nnvidia-smi\nls -la\nexit 3")
early("shell_lines", "!nvidia-smi\n!ls -la\nfiles = !ls\nprint(files)\n!echo {files} $HOME")
early("env_and_config", "%env SEED=1\n%env\n%config IPCompleter.greedy = True\n%xmode Verbose")
early("store_and_who", "x = 1\n%store x\n%store -r x\n%who\n%whos\n%history -n\n%lsmagic")
early("help_lines", "?torch.nn\ntorch.nn.Linear?\n??lora\nhelp(torch.relu)\n%pinfo torch")
early("pip_lines", "%pip install -q einops\n!pip install -q einops\n%conda list\n!uv pip list")
early("javascript", "%%javascript\nalert(1)")
early("prun_and_debug", "%prun sum(range(100))\n%debug\n%pdb on\n%tb")
early("reset_of_nothing", "%reset_selective -f ^never$\n%xdel never\n%rehashx")
early("automagic", "pwd\nls")
early("background_script", "%%script --bg bash\nsleep 1")
early(
    "own_magic",
    "from IPython.core.magic import register_line_magic\n\n@register_line_magic\n"
    "def hi(line):\n    print(line)\n\n%hi there",
)


@honest()
def module_written_and_imported(book):
    """`%%writefile`, then an import: Jupyter finds modules in the folder of the notebook."""
    book.early("%%writefile mine.py\ndef product(a, b):\n    return a @ b")
    book.replace(
        "lora_forward",
        """
import mine

def lora_forward(x, W, A, B, alpha):
    return mine.product(x, W.T) + alpha / len(A) * mine.product(mine.product(x, A.T), B.T)
""",
    )


@honest()
def script_run(book):
    """%run keeps the names that the script defined."""
    book.early(f"%%writefile answers.py\n{source(book.cell('step_flops'))}")
    book.replace("step_flops", "%run answers.py")


@honest()
def answers_under_magics(book):
    for name, magic in (
        ("lora_forward", "time"),
        ("inject", "capture"),
        ("merge_", "capture kept"),
    ):
        book.replace(name, f"%%{magic}\n{source(book.cell(name))}")


@honest()
def answer_behind_a_shell_line(book):
    book.replace("inject", "!nvidia-smi\nfiles = !ls\n" + source(book.cell("inject")))


@honest()
def answer_behind_help(book):
    book.replace("step_flops", source(book.cell("step_flops")) + "\n\nstep_flops?")
