"""Right answers, written otherwise than the course does."""

import importlib.util

from attack import code_cell, source
from honest import honest


@honest()
def lambdas(book):
    book.replace(
        "lora_forward",
        "lora_forward = lambda x, W, A, B, alpha: x @ W.T + alpha / len(A) * x @ A.T @ B.T",
    )
    book.replace(
        "step_flops",
        "step_flops = lambda shapes, n, r=None: n * sum(\n"
        "    6 * a * b if r is None else 4 * a * b + 6 * r * (a + b) for a, b in shapes.values())",
    )
    book.replace("quiz", 'quiz = lambda: dict(q1="B", q2=" c", q3="A")')


@honest()
def annotated(book):
    """Type annotations, with names from typing and from later."""
    book.replace(
        "lora_forward",
        """
from __future__ import annotations
from typing import Callable
from torch import Tensor

Shape = tuple[int, ...]
def lora_forward(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float | Later) -> Tensor:
    r: int = A.shape[0]
    scale: float = alpha / r
    return x @ W.T + scale * (x @ A.T) @ B.T
""",
    )
    book.replace("quiz", 'quiz: Callable[[], dict] = lambda: {"q1": "b", "q2": "c", "q3": "a"}')


@honest()
def decorated(book):
    """no_grad, cache, partial and a decorator of one's own."""
    book.early(
        "import functools, time\n\ndef timed(f):\n    @functools.wraps(f)\n"
        "    def inner(*args, **kwargs):\n        begun = time.time()\n"
        "        result = f(*args, **kwargs)\n        print(f'{time.time() - begun:.3f} s')\n"
        "        return result\n    return inner"
    )
    for name in ("lora_gradients", "inject"):
        book.replace(name, "@timed\n@torch.no_grad()\n" + source(book.cell(name)))
    book.wrap("step_flops", "step_flops = functools.partial(step_flops)")


@honest()
def compiled_by_torch_script(book):
    code = source(book.cell("lora_gradients")).replace(
        "(x, W, A, B, alpha, dY)", "(x, W, A, B, alpha: float, dY)"
    )
    book.replace("lora_gradients", "@torch.jit.script\n" + code)


@honest()
def class_over_cells(book):
    """`forward` in a cell of its own, put into the class behind it."""
    head, _, forward = source(book.cell("LoRALinear")).partition("    def forward(")
    lines = ("    def forward(" + forward).splitlines()
    book.replace("LoRALinear", head)
    free = "\n".join(line[4:] for line in lines)
    book.cells.insert(
        book.find("LoRALinear") + 1, code_cell(free + "\n\nLoRALinear.forward = forward")
    )


@honest()
def defined_under_a_condition(book):
    """Not at the top level of its cell."""
    lines = source(book.cell("inject")).splitlines()
    book.replace("inject", "if True:\n" + "\n".join("    " + line for line in lines))
    lines = source(book.cell("step_flops")).splitlines()
    body = "try:\n" + "\n".join("    " + line for line in lines)
    book.replace("step_flops", body + "\nexcept Exception as e:\n    print(e)")


@honest()
def tabs(book):
    for name in ("lora_forward", "LoRALinear", "merge_"):
        book.replace(name, source(book.cell(name)).replace("    ", "\t"))


@honest()
def odd_letters(book):
    """Non-breaking spaces in comments, no line end, a very long line, a form feed."""
    code = source(book.cell("lora_forward"))
    book.replace(
        "lora_forward", f"#\xa0right\xa0now {'x' * 30_000}\n\f\n{code}\n\n\n# end \u2028 x"
    )


@honest()
def chinese(book):
    """Comments, names, punctuation and text in Chinese."""
    book.replace(
        "lora_forward",
        """
def 缩放(甲, 秩):
    # 返回缩放系数（全角括号，全角逗号）
    return 甲 / 秩

def lora_forward(x, W, A, B, alpha):
    系数 = 缩放(alpha, A.shape[0])
    print("计算中……", 系数)
    return x @ W.T + 系数 * (x @ A.T) @ B.T
""",
    )


if importlib.util.find_spec("scipy"):

    @honest("01_svd")
    def with_scipy(book):
        book.replace(
            "best_rank_r",
            """
from scipy.linalg import svd

def best_rank_r(W, r):
    U, S, Vh = svd(W.numpy(), full_matrices=False)
    return torch.from_numpy((U[:, :r] * S[:r]) @ Vh[:r])
""",
        )
