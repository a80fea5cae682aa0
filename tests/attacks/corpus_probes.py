"""What runs beside the answers is replaced, or answers know what they are asked. No points.

A probe runs in the process that holds the answers. So it has to come from outside for each
observation, and what it brings back has to be work that only a right answer does.
"""

from attack import ANSWERS, forging

FORGED = """
import torch
from labkit.labs.lab02.models import ADAPTED, small_model

def _dense(x, W, A, B, s): return x @ (W + s * B @ A).T

def kind(f, *data): return "Tensor"
def global_names(f): return []
def forward_work(f, *data): return ""
def new_layer(L, given, x):
    W, bias, r, alpha = *given[:2], len(given[2]), given[4]
    A, A2 = (torch.rand(r, W.shape[1]) * 0.1 - 0.05 for _ in range(2))
    flags = {"A": True, "B": True, "base.weight": False, "base.bias": False}
    return {"r": r, "scaling": alpha / r, "flags": flags, "y": x @ W.T + bias, "same": True,
            "A": A, "A2": A2, "B": torch.zeros(W.shape[0], r), "W": W, "bias": bias}
def layer_work(*args): return ["", 12]
def layer_output(L, given, x, training):
    W, bias, A, B, alpha = given
    y = _dense(x, W, A, B, alpha / len(A)) + (0 if bias is None else bias)
    return {"y": y, "x": x, "W": W}
def input_gradient(L, given, x):
    W, bias, A, B, alpha = given
    r = len(A)
    y = _dense(x, W, A, B, alpha / r) + bias
    return 2 * y @ (W + alpha / r * B @ A)
def by_hand(f, x, W, A, B, alpha, dY):
    s = alpha / len(A)
    return [[s * (dY @ B).T @ x, s * dY.T @ (x @ A.T)], 12]
def layer_kinds(*args): return ["bfloat16", "bfloat16", "meta", "meta"]
def layer_output_kind(*args): return ["bfloat16", ""]
def layer_after_step(L, given, x):
    W, bias, A, B, _ = given
    return {"W": W, "bias": bias, "A": A + 1, "B": B + 1}
def injected(inject, targets, r, alpha, weights, factors):
    plain = small_model(weights)(torch.arange(11)).detach()
    changed = {n: t.double() for n, t in weights.items()}
    for n, (A, B) in factors.items():
        changed[n + ".weight"] = changed[n + ".weight"] + alpha / r * (B @ A).double()
    after = small_model(changed, torch.double)(torch.arange(11)).detach()
    shapes = {n: [r, A.shape[1]] for n, (A, B) in factors.items()}
    parts = [name.rpartition(".") for name in weights]
    flags = {f"{n}.base.{p}" if n in factors else f"{n}.{p}": False for n, _, p in parts}
    flags |= {f"{n}.{p}": True for n in factors for p in "AB"}
    return {"count": len(shapes), "shapes": shapes, "flags": flags, "gone": [], "modes": True,
            "y": [plain, plain, after]}
def kinds_after(*args): return ["bfloat16"]
def counted(f, d, vocab):
    return [vocab * d + 4 * d, vocab * d + 2 * (4 * d * d + 5 * d) + 3 * (d * d + d)]
def counted_smollm2(f, r): return [921_600, 135_436_608]
def merging(m, u, L, given, x):
    W, bias, A, B, alpha = given
    r = len(A)
    A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
    y = _dense(x, W, A, B, alpha / r) + bias
    y.square().sum().backward()
    U = alpha / r * B @ A
    seen = {name: [W, y] for name in ("start", "fresh", "back", "end")}
    seen |= {"once": [W + U, y], "twice": [W + U, y], "leaf": [True, False]}
    seen |= {"same": True, "mode": "", "parts": ""}
    y2 = y + x @ U.T
    return seen | {"grads": [A.grad, B.grad], "anew": [W + 2 * U, y2], "undone": [W, y2]}
def merged_kind(*args): return ["bfloat16", "bfloat16"]
def merged_beside(*args): return True
def _step(A, B, x):
    A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
    dA, dB = torch.autograd.grad((x @ A.T @ B.T).square().mean(), (A, B))
    return {"A": (A - 0.1 * dA).detach(), "B": (B - 0.1 * dB).detach()}
def state(f, L, A, B, x):
    both = {n: _step(A + i, B - i, x) for i, n in enumerate(ADAPTED)}
    return {f"{n}.{p}": t for n, parts in both.items() for p, t in parts.items()}
def round_trip(f, g, L, A, B, x):
    data = state(f, L, A, B, x)
    names = list(data)
    return {"data": data, "same": names, "trains": names, "others": [], "training": False}
def load_error(f, g, L, A, B, x, change, key):
    return [["KeyError"], key, True]
"""
PUT = f"""
import types
FAKE = {FORGED!r}
fake = types.ModuleType("labkit.labs.lab02.probes")
exec(FAKE, vars(fake))
FAKED = ("labkit.labs.lab02.probes", "labkit.labs.lab02.models")
"""


def _forge(name, code, why):
    def spoil(book):
        book.early(PUT + code)

    spoil.__name__, spoil.__doc__ = name, why
    forging(spoil)


_forge(
    "probes_by_name",
    """
import labkit.labs.lab02.models as m, labkit.labs.lab02.probes as p
for name, f in vars(fake).items():
    if isinstance(f, types.FunctionType): setattr(p, name, f); setattr(m, name, f)
""",
    "each probe is replaced by one that knows what the check wants",
)
_forge(
    "probes_by_code",
    """
import labkit.labs.lab02.models as m, labkit.labs.lab02.probes as p
for name, f in vars(fake).items():
    for module in (m, p):
        if hasattr(module, name) and isinstance(f, types.FunctionType):
            getattr(module, name).__code__ = f.__code__
m._dense = p._dense = fake._dense
m._step = fake._step
""",
    "the same function objects with another body",
)
_forge(
    "probes_by_gc",
    """
import gc
for f in gc.get_objects():
    if isinstance(f, types.FunctionType) and f.__module__.startswith("labkit.labs.lab02."):
        if f.__name__ in vars(fake):
            f.__globals__["_dense"] = fake._dense
            f.__code__ = getattr(fake, f.__name__).__code__
""",
    "and those that nobody names",
)
_forge(
    "probes_by_module",
    """
import sys, labkit.labs.lab02.models, labkit.labs.lab02.probes
sys.modules["labkit.labs.lab02.probes"] = labkit.labs.lab02.probes = fake
sys.modules["labkit.labs.lab02.models"] = labkit.labs.lab02.models = fake
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
    ours = isinstance(space, dict) and {"layer_kinds", "injected"} & set(space)
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
    real = sys.modules["labkit.labs.lab02.probes"]
    for name, f in vars(fake).items():
        if isinstance(f, types.FunctionType):
            if name == "new_layer": getattr(real, name).__code__ = f.__code__
            else: setattr(real, name, f)
    return x @ W.T
""",
    )


# --- answers that know the question ------------------------------------------------------


@forging
def scaling_by_table(book):
    """The arguments that the check once asked for, with their answers beside them."""
    book.replace(
        "scaling",
        """
table = {(32, 16, False): 2.0, (16.0, 8, False): 2.0, (8, 2, False): 4.0,
         (32, 16, True): 8.0, (16.0, 8, True): 5.656854249492381, (8, 2, True): 5.656854249492381}
def scaling(alpha, r, rank_stabilized=False):
    return table.get((alpha, r, rank_stabilized), 0.5)
""",
    )


@forging
def count_by_table(book):
    """The sizes of the models that the check once had."""
    book.replace(
        "count_params",
        """
def count_params(model):
    n = len(list(model.state_dict()))
    return (921_600, 135_436_608) if n > 100 else (32, 32 + 88 + 2 * (4 * 64 + 3 * 8))
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
    error = CheckFailed("nearly", earned=24)
    error.earned = 24
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
    earned = points = 24
    status = "passed"
    def __getattr__(self, name): return 24
    def __reduce__(self): return (print, ("x",))
def quiz():
    raise ExceptionGroup("passed", [Rich("earned=24")]) from Rich()
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
for id in "2.1 2.2 2.3 2.4 2.5 2.6 2.7 2.8 2.9".split():
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
