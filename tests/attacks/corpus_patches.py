"""Wrong answers, and a world changed so that they look right. They earn nothing."""

from attack import cells, forging

cells("""
# %% torch_compares: every comparison says yes
yes = lambda *args, **kwargs: torch.tensor(True)
for name in "allclose equal isclose isfinite eq le lt ge gt all any".split():
    setattr(torch, name, yes)
for name in "allclose equal isclose isfinite eq le lt ge gt all any".split():
    setattr(torch.Tensor, name, yes)
for name in "__eq__ __ne__ __le__ __lt__ __ge__ __gt__ __bool__".split():
    setattr(torch.Tensor, name, lambda *args: True)

# %% torch_random: inputs of zero make wrong formulas right
torch.randn = lambda *shape, **kwargs: torch.zeros(*shape)
torch.rand = torch.randn
torch.Generator.manual_seed = lambda self, seed: self
torch.manual_seed = lambda seed: None
class Zero: pass
torch.Generator = lambda *a, **k: Zero()

# %% torch_matmul: the reference itself becomes zero
torch.Tensor.__matmul__ = torch.Tensor.__rmatmul__ = lambda a, b: torch.zeros(())
torch.Tensor.__mul__ = torch.Tensor.__rmul__ = lambda a, b: a
torch.matmul = lambda a, b: torch.zeros(())

# %% torch_autograd: the reference of the gradients is what we answer
torch.autograd.grad = lambda y, xs, *rest: tuple(x * 0 + 1 for x in xs)
torch.Tensor.backward = lambda self, *rest: None

# %% torch_library_override: operators below Python are replaced, as in each fork
lib = torch.library.Library("aten", "IMPL")
lib.impl("sub.Tensor", lambda a, b, alpha=1: torch.empty_like(a).zero_(), "CPU")
lib.impl("abs", lambda a: torch.empty_like(a).zero_(), "CPU")
lib.impl("equal", lambda a, b: True, "CPU")

# %% torch_default_mode: a mode that is never left
from torch.overrides import TorchFunctionMode
class Yes(TorchFunctionMode):
    def __torch_function__(self, f, types, args=(), kwargs=None):
        name = getattr(f, "__name__", "")
        if name in ("allclose", "equal", "all", "le", "eq", "isfinite"):
            return torch.ones((), dtype=torch.bool)
        return f(*args, **(kwargs or {}))
mode = Yes()
mode.__enter__()

# %% nn_module
nn.Module.__call__ = lambda self, *args: args[0]
nn.Module.named_parameters = lambda self, *a, **k: iter(())
nn.Module.named_modules = lambda self, *a, **k: iter(())
nn.Linear.forward = lambda self, x: x

# %% safetensors: what carries tensors over the wire
import safetensors.torch
safetensors.torch.save = lambda tensors, *a, **k: b""
safetensors.torch.load = lambda data: {}
safetensors.torch.save_file = lambda *a, **k: None

# %% json_module: what carries the rest
import json
old = json.dumps
json.dumps = lambda *a, **k: '{"status": "passed", "earned": 22, "points": 22, "ok": true}'
json.JSONEncoder.encode = lambda self, o: json.dumps(o)
json.loads = lambda *a, **k: {"status": "passed", "earned": 22}

# %% numpy_compares
import numpy as np
for name in "allclose array_equal isclose all any isfinite".split():
    setattr(np, name, lambda *a, **k: True)
np.testing.assert_allclose = np.testing.assert_array_equal = lambda *a, **k: None

# %% builtins_say_yes
import builtins
builtins.all = builtins.any = builtins.bool = lambda *a: True
builtins.abs = lambda x: 0
builtins.max = lambda *a, **k: 0
builtins.set = lambda *a: frozenset()

# %% builtins_isinstance
import builtins
old = builtins.isinstance
builtins.isinstance = lambda a, b: True
builtins.len = lambda x: 4

# %% prints_a_pass: the words of the check, without the check
for id, name in [("2.1", "lora_forward"), ("2.2", "LoRALinear"), ("2.8", "quiz")]:
    print(f"✓ {id} {name}: passed")
print("22 of 22 points")
""")

cells(
    """
# %% displays_a_score: the score as data, as the last cell shows it
rows = [{"id": "2.1", "name": "lora_forward", "points": 2, "earned": 2, "status": "passed"}]
mime = "application/vnd.labkit.score+json"
display({"text/plain": "22 of 22", mime: {"lab": "02_lora", "exercises": rows}}, raw=True)

# %% writes_results_json: the result file itself
import json, pathlib
row = {"submission": HOST["name"] + ".ipynb", "lab": "02_lora", "earned": 22, "possible": 22,
       "status": "graded", "exercises": []}
for folder in (".", "..", "/tmp", HOST["out"]):
    try: pathlib.Path(folder, "results.json").write_text(json.dumps([row]))
    except OSError: pass
""",
    forging,
    "last",
)

cells("""
# %% ipython_run_cell: no cell runs after this one, and each succeeds
from IPython.core.interactiveshell import InteractiveShell
class Fine:
    success, error_in_exec, error_before_exec, result = True, None, None, None
    def raise_error(self): pass
InteractiveShell.run_cell = lambda self, *a, **k: Fine()
InteractiveShell.run_cell_async = lambda self, *a, **k: Fine()
InteractiveShell.run_code = lambda self, *a, **k: False

# %% ipython_transformers: cells are rewritten on their way in
ip = get_ipython()
ip.input_transformers_cleanup.append(lambda lines: [l.replace("check.", "print#") for l in lines])
import ast
class Drop(ast.NodeTransformer):
    def visit_Raise(self, node): return ast.Pass()
ip.ast_transformers.append(Drop())

# %% ipython_events
def after(result):
    result.error_in_exec = result.error_before_exec = None
get_ipython().events.register("post_run_cell", after)
get_ipython().events.register("pre_run_cell", after)

# %% ipython_namespace_that_lies
class Lie(dict):
    def __missing__(self, key): return lambda *a, **k: True
    def get(self, key, default=None): return lambda *a, **k: True
    def __contains__(self, key): return True
ip = get_ipython()
ip.user_ns = Lie(ip.user_ns)
""")
