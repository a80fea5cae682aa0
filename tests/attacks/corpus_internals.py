"""Wrong answers, and a labkit or an interpreter changed so that they look right: no points."""

from attack import cells, forging

cells(
    """
# %% labkit_start
import labkit, types
class Yes:
    def __getattr__(self, name): return lambda *a, **k: "passed"
labkit.start = lambda stem: (Yes(), Yes())

# %% labkit_checks: every check is another function
import sys, types
import labkit.checks, labkit.contract as contract
for stem in "01 02 03 04 05 06".split():
    fake = types.ModuleType(f"labkit.checks.lab{stem}")
    fake.__getattr__ = lambda name: lambda *objects: "passed"
    sys.modules[fake.__name__] = fake
    setattr(labkit.checks, f"lab{stem}", fake)
""",
    forging,
    "first",
)

cells("""
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
names = "lora_forward LoRALinear lora_gradients inject step_flops merge_ adapter_state quiz"
points = [2, 3, 3, 3, 2, 3, 3, 3]
class Sticky(dict):
    def clear(self): pass
    def setdefault(self, key, value): return self[key]
    def __setitem__(self, key, value): pass
contract.session.records = Sticky({
    f"2.{i + 1}": {"id": f"2.{i + 1}", "name": name, "points": p, "earned": p, "status": "passed",
                   "message": ""}
    for i, (name, p) in enumerate(zip(names.split(), points))})

# %% labkit_plain: what makes plain data of an object
import sys
class Equal:
    def __eq__(self, other): return True
    __hash__ = None
for module in [m for name, m in sys.modules.items() if name.startswith("labkit.contract")]:
    module.plain = lambda value: Equal()
    module.copied = lambda data: [0 * d for d in data]

# %% labkit_worker_code: every function of the grader says yes, whoever holds it
import gc, types
TRUSTED = ("labkit.grading", "labkit.contract")
for f in gc.get_objects():
    if isinstance(f, types.FunctionType) and (f.__module__ or "").startswith(TRUSTED):
        try: f.__code__ = (lambda *a, **k: {"status": "passed", "earned": 22}).__code__
        except ValueError: pass

# %% import_hook
import sys, types
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("labkit.checks", "labkit.probes")):
            raise ImportError("not here")
    def find_module(self, *a): return None
sys.meta_path.insert(0, Finder())
for name in [n for n in sys.modules if n.startswith(("labkit.checks", "labkit.probes"))]:
    del sys.modules[name]

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

# %% profile_hook: raises inside the grader's functions
import sys
def profile(frame, event, arg):
    if "grading" in frame.f_code.co_filename:
        raise StopIteration
sys.setprofile(profile)

# %% audit_hook: a hook that cannot be taken away forbids what a grader needs
import sys
def hook(event, args):
    if event in ("exec", "compile", "import", "open"):
        raise RuntimeError("no " + event)
sys.addaudithook(hook)

# %% gc_callbacks: every allocation runs our code
import gc
gc.callbacks.append(lambda phase, info: 1 / 0)
gc.set_threshold(1)

# %% memory_write: False is now true, in this process
import ctypes, sys
def poke(obj, value):
    ctypes.cast(id(obj) + 24, ctypes.POINTER(ctypes.c_uint32))[0] = value
poke(-5, 5)
true, false = id(True), id(False)
ctypes.memmove(false + 16, true + 16, 16)

# %% exception_hooks: errors leave no trace
import sys, threading
sys.excepthook = threading.excepthook = sys.unraisablehook = lambda *a: None
get_ipython().showtraceback = lambda *a, **k: None
get_ipython().set_custom_exc((BaseException,), lambda *a, **k: None)
""")
