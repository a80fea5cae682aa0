"""Wrong answers, and a labkit or an interpreter changed so that they look right: no points."""

from attack import forging


def _patch(name, code, why, where="early"):
    def spoil(book):
        getattr(book, where)(code)

    spoil.__name__, spoil.__doc__ = name, why
    forging(spoil)


# --- labkit ---------------------------------------------------------------------------------

_patch(
    "labkit_start",
    """
import labkit, types
class Yes:
    def __getattr__(self, name): return lambda *a, **k: "passed"
labkit.start = lambda stem: (Yes(), Yes())
""",
    "",
    "first",
)
_patch(
    "labkit_checks",
    """
import sys, types
import labkit.checks, labkit.contract as contract
for stem in "01 02 03 04 05 06".split():
    fake = types.ModuleType(f"labkit.checks.lab{stem}")
    fake.__getattr__ = lambda name: lambda *objects: "passed"
    sys.modules[fake.__name__] = fake
    setattr(labkit.checks, f"lab{stem}", fake)
""",
    "every check is another function",
    "first",
)
_patch(
    "labkit_checks_in_place",
    """
try:
    import labkit.checks.lab02 as c
    for f in list(vars(c).values()):
        if getattr(f, "exercise", None):
            f.__wrapped__.__code__ = (lambda *objects: "passed").__code__
            c.__dict__[f.__name__] = lambda *objects: "passed"
except Exception: pass
""",
    "the code of the same function objects",
)
_patch(
    "labkit_engine",
    """
try:
    from labkit.checks import engine, lab02 as c
    for m in (engine, c):
        for name in ("expect_right", "expect", "same"):
            setattr(m, name, lambda *a, **k: True)
except Exception: pass
""",
    "",
)
_patch(
    "labkit_contract",
    """
import labkit.contract as contract
contract.expect = lambda *a, **k: None
contract.observe = lambda f, *data: data[0] if data else {}
contract.CheckFailed = type("Never", (Exception,), {})
contract.NotWritten = contract.CheckFailed
contract._record = lambda record, *rest: contract.session.records.update({record["id"]: record})
contract.exercise = lambda id, points: lambda f: lambda *a: None
contract.Session.call = lambda self, f, data: data
""",
    "",
)
_patch(
    "labkit_records",
    """
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
""",
    "the records of this process say that all is passed",
)
_patch(
    "labkit_plain",
    """
import labkit.contract.plain as p, labkit.contract as c
class Equal:
    def __eq__(self, other): return True
    __hash__ = None
p.plain = c.plain = lambda value: Equal()
p.copied = c.copied = lambda data: [0 * d for d in data]
""",
    "what makes plain data of an object",
)
_patch(
    "labkit_every_grading_module",
    """
import sys, types
for name, module in list(sys.modules.items()):
    if name.startswith(("labkit.grading", "labkit.contract")):
        for key, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType) and value.__module__ == name:
                setattr(module, key, lambda *a, **k: True)
""",
    "all functions of the grader that this process knows say yes",
)
_patch(
    "labkit_worker_code",
    """
import gc, types
TRUSTED = ("labkit.grading", "labkit.contract")
for f in gc.get_objects():
    if isinstance(f, types.FunctionType) and (f.__module__ or "").startswith(TRUSTED):
        try: f.__code__ = (lambda *a, **k: {"status": "passed", "earned": 22}).__code__
        except ValueError: pass
""",
    "the same, for those that are only held by a frame or a closure",
)

# --- the interpreter -----------------------------------------------------------------------

_patch(
    "import_hook",
    """
import sys, types
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("labkit.checks", "labkit.probes")):
            raise ImportError("not here")
    def find_module(self, *a): return None
sys.meta_path.insert(0, Finder())
for name in [n for n in sys.modules if n.startswith(("labkit.checks", "labkit.probes"))]:
    del sys.modules[name]
""",
    "",
)
_patch(
    "import_path",
    """
import pathlib, sys, tempfile
folder = pathlib.Path(tempfile.mkdtemp())
for name in ("labkit", "torch", "safetensors", "json"):
    (folder / f"{name}.py").write_text("raise SystemExit(0)")
sys.path.insert(0, str(folder))
for name in [n for n in sys.modules if n.split(".")[0] in ("labkit", "safetensors", "json")]:
    del sys.modules[name]
""",
    "a later import finds our files first",
)
_patch(
    "trace_hook",
    """
import sys, threading
def tracer(frame, event, arg):
    for key in ("earned", "right", "status", "ok"):
        if key in frame.f_locals:
            frame.f_locals[key] = 22
    return tracer
sys.settrace(tracer)
threading.settrace(tracer)
""",
    "rewrites locals wherever Python runs",
)
_patch(
    "profile_hook",
    """
import sys
def profile(frame, event, arg):
    if "grading" in frame.f_code.co_filename:
        raise StopIteration
sys.setprofile(profile)
""",
    "raises inside the grader's functions",
)
_patch(
    "audit_hook",
    """
import sys
def hook(event, args):
    if event in ("exec", "compile", "import", "open"):
        raise RuntimeError("no " + event)
sys.addaudithook(hook)
""",
    "a hook that cannot be taken away forbids what a grader needs",
)
_patch(
    "monitoring",
    """
import sys
if hasattr(sys, "monitoring"):
    m = sys.monitoring
    m.use_tool_id(3, "x")
    m.set_events(3, m.events.PY_START)
    def start(code, offset):
        if "grading" in code.co_filename: raise ValueError("no")
    m.register_callback(3, m.events.PY_START, start)
""",
    "",
)
_patch(
    "gc_callbacks",
    """
import gc, weakref
gc.callbacks.append(lambda phase, info: 1 / 0)
gc.set_threshold(1)
""",
    "every allocation runs our code",
)
_patch(
    "memory_write",
    """
import ctypes, sys
def poke(obj, value):
    ctypes.cast(id(obj) + 24, ctypes.POINTER(ctypes.c_uint32))[0] = value
poke(-5, 5)
true, false = id(True), id(False)
ctypes.memmove(false + 16, true + 16, 16)
""",
    "False is now true, in this process",
)
_patch(
    "exception_hooks",
    """
import sys, threading
sys.excepthook = threading.excepthook = sys.unraisablehook = lambda *a: None
import contextlib
get_ipython().showtraceback = lambda *a, **k: None
get_ipython().set_custom_exc((BaseException,), lambda *a, **k: None)
""",
    "errors leave no trace",
)
