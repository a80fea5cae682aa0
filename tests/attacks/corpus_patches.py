"""Wrong answers, and torch, Python or labkit changed so that they look right: no points."""

from attack import cells, forging

cells("""
# %% torch_compares: every comparison says yes
yes = lambda *args, **kwargs: torch.tensor(True)
for name in "allclose equal isclose isfinite eq le lt ge gt all any".split():
    setattr(torch, name, yes)
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

# %% codecs: what carries data and tensors over the wire
import json, safetensors.torch
said = '{"status": "passed", "earned": 22, "points": 22, "ok": true}'
json.dumps = json.JSONEncoder.encode = lambda *a, **k: said
json.loads = lambda *a, **k: {"status": "passed", "earned": 22}
safetensors.torch.save = lambda tensors, *a, **k: b""
safetensors.torch.load = lambda data: {}

# %% builtins_say_yes
import builtins
builtins.all = builtins.any = builtins.bool = lambda *a: True
builtins.abs = lambda x: 0
builtins.max = lambda *a, **k: 0
builtins.set = lambda *a: frozenset()

# %% ipython_run_cell: no cell runs after this one, and each succeeds
from IPython.core.interactiveshell import InteractiveShell
class Fine:
    success, error_in_exec, error_before_exec, result = True, None, None, None
    def raise_error(self): pass
InteractiveShell.run_cell = lambda self, *a, **k: Fine()
InteractiveShell.run_cell_async = lambda self, *a, **k: Fine()
InteractiveShell.run_code = lambda self, *a, **k: False

# %% ipython_namespace_that_lies
class Lie(dict):
    def __missing__(self, key): return lambda *a, **k: True
    def get(self, key, default=None): return lambda *a, **k: True
    def __contains__(self, key): return True
ip = get_ipython()
ip.user_ns = Lie(ip.user_ns)

# %% labkit_contract
import labkit.contract as contract
contract.expect = lambda *a, **k: None
contract.observe = lambda f, *data: data[0] if data else {}
contract.CheckFailed = type("Never", (Exception,), {})
contract.NotWritten = contract.CheckFailed
contract.exercise = lambda id, points: lambda f: lambda *a: None
contract.Session.call = lambda self, f, data: data

# %% labkit_records: the records of this process say that all is passed
import labkit.contract as contract
class Sticky(dict):
    def clear(self): pass
    def setdefault(self, key, value): return self[key]
    def __setitem__(self, key, value): pass
contract.session.records = Sticky({
    id: {"id": id, "name": "x", "points": p, "earned": p, "status": "passed", "message": ""}
    for id, p in zip((f"2.{i}" for i in range(1, 9)), [2, 3, 3, 3, 2, 3, 3, 3])})

# %% labkit_worker_code: every function of the grader says yes, whoever holds it
import gc, types
TRUSTED = ("labkit.grading", "labkit.contract")
for f in gc.get_objects():
    if isinstance(f, types.FunctionType) and (f.__module__ or "").startswith(TRUSTED):
        try: f.__code__ = (lambda *a, **k: {"status": "passed", "earned": 22}).__code__
        except ValueError: pass

# %% import_path: a later import finds our files first
import pathlib, sys, tempfile
folder = pathlib.Path(tempfile.mkdtemp())
for name in ("labkit", "torch", "safetensors", "json"):
    (folder / f"{name}.py").write_text("raise SystemExit(0)")
sys.path.insert(0, str(folder))
for name in [n for n in sys.modules if n.split(".")[0] in ("labkit", "safetensors", "json")]:
    del sys.modules[name]

# %% trace_hook: rewrites locals wherever Python runs
import sys, threading
def tracer(frame, event, arg):
    for key in ("earned", "right", "status", "ok"):
        if key in frame.f_locals:
            frame.f_locals[key] = 22
    return tracer
sys.settrace(tracer)
threading.settrace(tracer)

# %% memory_write: False is now true, in this process
import ctypes, sys
def poke(obj, value):
    ctypes.cast(id(obj) + 24, ctypes.POINTER(ctypes.c_uint32))[0] = value
poke(-5, 5)
true, false = id(True), id(False)
ctypes.memmove(false + 16, true + 16, 16)
""")

cells(
    """
# %% displays_a_score: the score as data, as the last cell shows it
rows = [{"id": "2.1", "name": "lora_forward", "points": 2, "earned": 2, "status": "passed"}]
mime = "application/vnd.labkit.score+json"
display({"text/plain": "22 of 22", mime: {"lab": "02_lora", "exercises": rows}}, raw=True)
""",
    forging,
    "last",
)

cells(
    """
# %% labkit_start: what the notebook calls, and the checks behind it, say yes
import labkit, labkit.checks, sys, types
class Yes:
    def __getattr__(self, name): return lambda *a, **k: "passed"
labkit.start = lambda stem: (Yes(), Yes())
for stem in "01 02 03 04 05 06".split():
    fake = types.ModuleType(f"labkit.checks.lab{stem}")
    fake.__getattr__ = lambda name: lambda *objects: "passed"
    sys.modules[fake.__name__] = fake
    setattr(labkit.checks, f"lab{stem}", fake)
""",
    forging,
    "first",
)
