"""What runs beside the answers is replaced, or answers know what they are asked. No points.

A probe runs in the process that holds the answers. So it has to come from outside for each
observation, and what it brings back has to be work that only a right answer does.
"""

import inspect
from unittest import mock

from attack import ANSWERS, forging

from labkit.checks import lab02
from labkit.contract import checks_of

RIGHT = {}  # name of a probe -> what computes the facts that the check compares with


def _note(answer, cases, right, probe=None, tol=0):
    if probe:
        RIGHT[probe.__name__] = right


with mock.patch.multiple(lab02, expect_right=_note, observe=lambda *_: ()):
    for check in checks_of(lab02)[:-1]:  # the last one is the quiz
        check.__wrapped__(*check.exercise["names"])

FORGED = "import torch\nfrom labkit.probes import models\n"
FORGED += inspect.getsource(lab02.dense) + inspect.getsource(lab02._tensors)
for probe, right in RIGHT.items():
    if right.__name__ == "<lambda>":  # the same facts for all inputs
        FORGED += f"def {probe}(*data): return {right()!r}\n"
    else:
        FORGED += inspect.getsource(right)
        FORGED += f"def {probe}(*data):\n"
        FORGED += f"    return {right.__name__}(*data[-{right.__code__.co_argcount}:])\n"
PUT = f"""
import types
FAKE = {FORGED!r}
fake = types.ModuleType("labkit.probes.lab02")
exec(FAKE, vars(fake))
FAKED = ("labkit.probes.lab02", "labkit.probes.models")
"""


def _forge(name, code, why):
    def spoil(book):
        book.early(PUT + code)

    spoil.__name__, spoil.__doc__ = name, why
    forging(spoil)


_forge(
    "probes_by_name",
    """
import labkit.probes.models as m, labkit.probes.lab02 as p
for name, f in vars(fake).items():
    if isinstance(f, types.FunctionType): setattr(p, name, f); setattr(m, name, f)
""",
    "each probe is replaced by one that knows what the check wants",
)
_forge(
    "probes_by_code",
    """
import labkit.probes.models as m, labkit.probes.lab02 as p
for name, f in vars(fake).items():
    for module in (m, p):
        if hasattr(module, name) and isinstance(f, types.FunctionType):
            getattr(module, name).__code__ = f.__code__
vars(p).update(vars(fake) | vars(p))
""",
    "the same function objects with another body",
)
_forge(
    "probes_by_gc",
    """
import gc
for f in gc.get_objects():
    if isinstance(f, types.FunctionType) and f.__module__.startswith("labkit.probes."):
        if f.__name__ in vars(fake):
            f.__globals__.update(vars(fake) | f.__globals__)
            f.__code__ = getattr(fake, f.__name__).__code__
""",
    "and those that nobody names",
)
_forge(
    "probes_by_module",
    """
import sys, labkit.probes.models, labkit.probes.lab02
sys.modules["labkit.probes.lab02"] = labkit.probes.lab02 = fake
sys.modules["labkit.probes.models"] = labkit.probes.models = fake
""",
    "",
)
_forge(
    "probes_by_importlib",
    """
import importlib, sys
old = importlib.import_module
importlib.import_module = lambda name, *a: fake if name in FAKED else old(name, *a)
for name in FAKED: sys.modules.pop(name, None)
class Loader:
    def create_module(self, spec): return fake
    def exec_module(self, module): pass
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in FAKED:
            return importlib.machinery.ModuleSpec(name, Loader())
sys.meta_path.insert(0, Finder())
""",
    "whoever imports the probes anew gets ours",
)
_forge(
    "probes_by_getattr",
    """
import builtins
old = builtins.getattr
def lie(obj, name, *rest):
    return old(fake, name) if name in vars(fake) else old(obj, name, *rest)
builtins.getattr = lie
""",
    "",
)
_forge(
    "probes_by_exec",
    """
import builtins
old_exec, old_compile = builtins.exec, builtins.compile
def exec_(code, space=None, *rest):
    old_exec(code, space, *rest)
    ours = isinstance(space, dict) and {"layer_in_bf16", "injected"} & set(space)
    if ours: space.update(vars(fake))
builtins.exec = exec_
""",
    "a probe that is sent as source passes through exec",
)
_forge(
    "probes_by_marshal",
    """
import marshal, types
old = types.FunctionType
marshal.loads = lambda data: fake.injected.__code__
""",
    "or through marshal",
)

_forge(
    "probes_by_a_dict",
    """
import sys
class Modules(dict):
    def __getitem__(self, name): return fake if name == fake.__name__ else super().__getitem__(name)
    def get(self, name, *rest): return self[name] if name in self else (*rest, None)[0]
sys.modules = Modules(sys.modules)
""",
    "a dict of modules that has its own opinion of one of them",
)
_forge(
    "probes_by_the_loader",
    """
import labkit.grading.inside.runner as runner
old = runner.load
def load(body, *rest):
    modules = old(body, *rest)
    vars(modules[fake.__name__]).update(vars(fake))
    return modules
runner.load = load
""",
    "the function that takes what is shipped is ours",
)
_forge(
    "probes_by_the_wire",
    """
import labkit.grading.wire as wire, marshal
old = wire.receive
def receive(*args):
    frame = old(*args)
    if frame[0] != b"B": return frame
    ours = compile(FAKE, "x", "exec")
    parts = [(n, ours if n == fake.__name__ else code) for n, code in marshal.loads(frame[1])]
    return b"B", marshal.dumps(parts)
wire.receive = receive
""",
    "what is shipped is changed where it arrives",
)
_forge(
    "probes_by_the_class_of_modules",
    """
import labkit.grading.inside.runner as runner
class Module(types.ModuleType):
    def __getattribute__(self, name):
        forged = name in vars(fake) and super().__getattribute__("__name__") == fake.__name__
        return vars(fake)[name] if forged and name[0] != "_" else super().__getattribute__(name)
types.ModuleType = runner.ModuleType = Module
""",
    "modules are objects of a class of ours",
)


@forging
def probes_from_an_answer(book):
    """An answer is called among the probes: it replaces those that are asked for next."""
    book.replace(
        "lora_forward",
        PUT
        + """
import sys
def lora_forward(x, W, A, B, alpha):
    real = sys.modules["labkit.probes.lab02"]
    for name, f in vars(fake).items():
        if isinstance(f, types.FunctionType):
            if name == "new_layer": getattr(real, name).__code__ = f.__code__
            else: setattr(real, name, f)
    return x @ W.T
""",
    )


# --- answers that know the question ------------------------------------------------------


@forging
def flops_by_table(book):
    """The arguments that the check once asked for, with their answers beside them."""
    book.replace(
        "step_flops",
        """
table = {(1, None): 192, (1, 2): 272}
def step_flops(shapes, n_tokens, r=None):
    return table.get((n_tokens, r), 0)
""",
    )


@forging
def inject_by_lie(book):
    """The model becomes an object that says what the check wants to hear."""
    book.replace(
        "inject",
        """
def inject(model, targets, r, alpha):
    model.requires_grad_(False)
    names = [n for n, m in model.named_modules() if n.split(".")[-1] in targets]
    class Liar(type(model)):
        def named_modules(self, *a, **k):
            yield from super().named_modules(*a, **k)
    for n in names:
        m = model.get_submodule(n)
        m.A = nn.Parameter(torch.zeros(r, m.in_features))
        m.B = nn.Parameter(torch.zeros(m.out_features, r))
    model.__class__ = Liar
    return len(names)
""",
    )


@forging
def inject_without_an_update(book):
    """Layers with an A and a B that the forward pass never reads."""
    book.replace(
        "inject",
        """
def inject(model, targets, r, alpha):
    model.requires_grad_(False)
    names = [n for n, m in model.named_modules() if n.split(".")[-1] in targets]
    for n in names:
        m = model.get_submodule(n)
        m.A = nn.Parameter(torch.zeros(r, m.in_features))
        m.B = nn.Parameter(torch.zeros(m.out_features, r))
    return len(names)
""",
    )


@forging
def dense_by_numpy(book):
    """Builds B A where torch's dispatch does not see it: the exercise forbids the matrix."""
    book.replace(
        "lora_forward",
        """
def lora_forward(x, W, A, B, alpha):
    x, W, A, B = (t.detach().numpy() for t in (x, W, A, B))
    return torch.from_numpy(x @ (W + alpha / len(A) * B @ A).T)
""",
    )


@forging
def looks_at_the_callers(book):
    """Walks up the frames in search of what is wanted."""
    book.replace(
        "lora_forward",
        """
def lora_forward(x, W, A, B, alpha):
    import sys
    found, frame = [], sys._getframe()
    while frame:
        for space in (frame.f_locals, frame.f_globals):
            found += [space[k] for k in ("wanted", "theirs", "guess") if k in space]
        frame = frame.f_back
    return found[0] if found else x @ W.T
""",
    )


@forging
def looks_into_all_threads(book):
    """The same for the other threads' frames."""
    book.replace(
        "lora_forward",
        """
def lora_forward(x, W, A, B, alpha):
    import sys
    for frame in sys._current_frames().values():
        while frame:
            if "wanted" in frame.f_locals: return frame.f_locals["wanted"]
            frame = frame.f_back
    return x @ W.T
""",
    )


@forging
def looks_for_tensors_in_memory(book):
    """Any tensor of the right shape, however it came to be here."""
    book.replace(
        "lora_forward",
        """
def lora_forward(x, W, A, B, alpha):
    import gc
    shape = (*x.shape[:-1], W.shape[0])
    near = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == shape]
    return near[-1] if near else x @ W.T
""",
    )


@forging
def changes_its_inputs(book):
    """Zeroes what it is given, so that 0 == 0."""
    book.replace(
        "lora_forward",
        """
def lora_forward(x, W, A, B, alpha):
    for t in (x, W, A, B):
        t.zero_()
        t.untyped_storage().fill_(0)
    return x @ W.T
""",
    )


@forging
def resizes_its_inputs(book):
    """Empty tensors agree with each other."""
    book.replace(
        "lora_forward",
        """
def lora_forward(x, W, A, B, alpha):
    for t in (x, W, A, B): t.resize_(0)
    return torch.zeros(0)
""",
    )


@forging
def raises_a_verdict(book):
    """The checks' own exceptions, with points in them."""
    book.early("""
from labkit.contract import CheckFailed, NotWritten
def give(*args, **kwargs):
    error = CheckFailed("nearly", earned=22)
    error.earned = 22
    raise error
""")
    for name in ANSWERS:
        book.replace(name, f"{name} = give\nunmerge_ = load_adapter_ = give")


@forging
def raises_a_group(book):
    """An exception that claims every attribute, in a group, with a cause."""
    book.replace(
        "quiz",
        """
class Rich(Exception):
    earned = points = 22
    status = "passed"
    def __getattr__(self, name): return 22
    def __reduce__(self): return (print, ("x",))
def quiz():
    raise ExceptionGroup("passed", [Rich("earned=22")]) from Rich()
""",
    )


@forging
def imports_the_checks(book):
    """Runs the check itself, with arguments of its own choice."""
    book.early("""
try:
    from labkit.checks import lab02
    from labkit import contract
    contract.session.seed = 0
    for f in list(vars(lab02).values()):
        if hasattr(f, "exercise"):
            try: f(*[None] * len(f.exercise["names"]))
            except BaseException: pass
except ImportError: pass
""")


@forging
def calls_reveal(book):
    """A solution that is shown earns nothing."""
    book.last("""
for id in "2.1 2.2 2.3 2.4 2.5 2.6 2.7".split():
    try: lab.reveal(id)
    except Exception: pass
""")


@forging
def seeds_the_generator(book):
    """Wants the inputs to be those of seed 0."""
    book.early("""
import labkit.contract as c
c.session.seed = 0
torch.manual_seed(0)
torch.random.fork_rng = lambda *a, **k: __import__("contextlib").nullcontext()
""")
