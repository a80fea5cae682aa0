"""What runs beside the answers is replaced, or answers know what they are asked. No points.

A probe runs in the process that holds the answers. So it has to come from outside for each
observation, and what it brings back has to be work that only a right answer does.
"""

from attack import ANSWERS, cells, forging
from forged import PUT

cells(
    """
# %% probes_by_name: each probe is replaced by one that knows what the check wants
import labkit.probes.models as m, labkit.probes.lab02 as p
for name, f in vars(fake).items():
    if isinstance(f, types.FunctionType): setattr(p, name, f); setattr(m, name, f)

# %% probes_by_gc: and those that nobody names
import gc
for f in gc.get_objects():
    if isinstance(f, types.FunctionType) and f.__module__.startswith("labkit.probes."):
        if f.__name__ in vars(fake):
            f.__globals__.update(vars(fake) | f.__globals__)
            f.__code__ = getattr(fake, f.__name__).__code__

# %% probes_by_module
import sys, labkit.probes.models, labkit.probes.lab02
sys.modules["labkit.probes.lab02"] = labkit.probes.lab02 = fake
sys.modules["labkit.probes.models"] = labkit.probes.models = fake

# %% probes_by_importlib: whoever imports the probes anew gets ours
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

# %% probes_by_getattr
import builtins
old = builtins.getattr
def lie(obj, name, *rest):
    return old(fake, name) if name in vars(fake) else old(obj, name, *rest)
builtins.getattr = lie

# %% probes_by_exec: a probe that is sent as source passes through exec
import builtins
old_exec, old_compile = builtins.exec, builtins.compile
def exec_(code, space=None, *rest):
    old_exec(code, space, *rest)
    ours = isinstance(space, dict) and {"layer_in_bf16", "injected"} & set(space)
    if ours: space.update(vars(fake))
builtins.exec = exec_

# %% probes_by_marshal: or through marshal
import marshal, types
old = types.FunctionType
marshal.loads = lambda data: fake.injected.__code__

# %% probes_by_a_dict: a dict of modules that has its own opinion of one of them
import sys
class Modules(dict):
    def __getitem__(self, name): return fake if name == fake.__name__ else super().__getitem__(name)
    def get(self, name, *rest): return self[name] if name in self else (*rest, None)[0]
sys.modules = Modules(sys.modules)

# %% probes_by_the_loader: the function that takes what is shipped is ours
import labkit.grading.inside.runner as runner
old = runner.load
def load(body, *rest):
    modules = old(body, *rest)
    vars(modules[fake.__name__]).update(vars(fake))
    return modules
runner.load = load

# %% probes_by_the_wire: what is shipped is changed where it arrives
import labkit.grading.wire as wire, marshal
old = wire.receive
def receive(*args):
    frame = old(*args)
    if frame[0] != b"B": return frame
    ours = compile(FAKE, "x", "exec")
    parts = [(n, ours if n == fake.__name__ else code) for n, code in marshal.loads(frame[1])]
    return b"B", marshal.dumps(parts)
wire.receive = receive

# %% probes_by_the_class_of_modules: modules are objects of a class of ours
import labkit.grading.inside.runner as runner
class Module(types.ModuleType):
    def __getattribute__(self, name):
        forged = name in vars(fake) and super().__getattribute__("__name__") == fake.__name__
        return vars(fake)[name] if forged and name[0] != "_" else super().__getattribute__(name)
types.ModuleType = runner.ModuleType = Module
""",
    forging,
    before=PUT,
)

cells(
    """
# %% probes_from_an_answer: called among the probes, it replaces those that are asked for next
import sys
def lora_forward(x, W, A, B, alpha):
    real = sys.modules["labkit.probes.lab02"]
    for name, f in vars(fake).items():
        if isinstance(f, types.FunctionType):
            if name == "new_layer": getattr(real, name).__code__ = f.__code__
            else: setattr(real, name, f)
    return x @ W.T
""",
    forging,
    "lora_forward",
    before=PUT,
)

cells(
    """
# %% flops_by_table: the arguments that the check once asked for, with their answers
table = {(1, None): 192, (1, 2): 272}
def step_flops(shapes, n_tokens, r=None):
    return table.get((n_tokens, r), 0)
""",
    forging,
    "step_flops",
)

cells(
    """
# %% inject_by_lie: the model becomes an object that says what the check wants to hear
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
    forging,
    "inject",
)

cells(
    """
# %% dense_by_numpy: builds the matrix that the exercise forbids, unseen by torch's dispatch
def lora_forward(x, W, A, B, alpha):
    x, W, A, B = (t.detach().numpy() for t in (x, W, A, B))
    return torch.from_numpy(x @ (W + alpha / len(A) * B @ A).T)

# %% looks_at_the_callers: walks up the frames in search of what is wanted
def lora_forward(x, W, A, B, alpha):
    import sys
    found, frame = [], sys._getframe()
    while frame:
        for space in (frame.f_locals, frame.f_globals):
            found += [space[k] for k in ("wanted", "theirs", "guess") if k in space]
        frame = frame.f_back
    return found[0] if found else x @ W.T

# %% looks_into_all_threads: the same for the other threads' frames
def lora_forward(x, W, A, B, alpha):
    import sys
    for frame in sys._current_frames().values():
        while frame:
            if "wanted" in frame.f_locals: return frame.f_locals["wanted"]
            frame = frame.f_back
    return x @ W.T

# %% looks_for_tensors_in_memory: any tensor of the right shape, however it came to be here
def lora_forward(x, W, A, B, alpha):
    import gc
    shape = (*x.shape[:-1], W.shape[0])
    near = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == shape]
    return near[-1] if near else x @ W.T

# %% changes_its_inputs: zeroes what it is given, so that 0 == 0
def lora_forward(x, W, A, B, alpha):
    for t in (x, W, A, B):
        t.zero_()
        t.untyped_storage().fill_(0)
    return x @ W.T

# %% resizes_its_inputs: empty tensors agree with each other
def lora_forward(x, W, A, B, alpha):
    for t in (x, W, A, B): t.resize_(0)
    return torch.zeros(0)
""",
    forging,
    "lora_forward",
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


cells(
    """
# %% raises_a_group: an exception that claims every attribute, in a group, with a cause
class Rich(Exception):
    earned = points = 22
    status = "passed"
    def __getattr__(self, name): return 22
    def __reduce__(self): return (print, ("x",))
def quiz():
    raise ExceptionGroup("passed", [Rich("earned=22")]) from Rich()
""",
    forging,
    "quiz",
)

cells(
    """
# %% calls_reveal: a solution that is shown earns nothing
for id in "2.1 2.2 2.3 2.4 2.5 2.6 2.7".split():
    try: lab.reveal(id)
    except Exception: pass
""",
    forging,
    "last",
)
