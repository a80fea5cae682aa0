"""What runs beside the answers is replaced, or answers know what they are asked. No points.

A probe runs in the process that holds the answers. So it has to come from outside for each
observation, and what it brings back has to be work that only a right answer does.
"""

from attack import cells, forging
from forged import PUT

cells(
    """
# %% probes_imported: modules are ours, whoever has them or imports them anew
import importlib, sys, labkit.probes.models, labkit.probes.lab02
for module in (labkit.probes.models, labkit.probes.lab02):
    for name, f in vars(fake).items():
        if isinstance(f, types.FunctionType): setattr(module, name, f)
    sys.modules[module.__name__] = fake
labkit.probes.lab02 = labkit.probes.models = fake
old = importlib.import_module
importlib.import_module = lambda name, *a: fake if name in FAKED else old(name, *a)
class Loader:
    def create_module(self, spec): return fake
    def exec_module(self, module): pass
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in FAKED:
            return importlib.machinery.ModuleSpec(name, Loader())
sys.meta_path.insert(0, Finder())

# %% shipped_code_replaced: the probes pass through an exec of ours on their way in
import builtins, labkit.grading.inside.runner as runner
old = exec
def replace(code, space=None, *rest):
    old(code, space, *rest)
    if isinstance(space, dict) and "injected" in space: space.update(vars(fake))
builtins.exec = runner.exec = replace

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
# %% looks_at_the_callers: walks up the frames of all threads in search of what is wanted
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
""",
    forging,
    "lora_forward",
)


cells(
    """
# %% raises_a_verdict: the checks' own exceptions, with points in them
from labkit.contract import CheckFailed
def give(*args, **kwargs):
    error = CheckFailed("nearly", earned=22)
    error.earned = 22
    raise error
lora_forward = LoRALinear = lora_gradients = inject = step_flops = quiz = give
merge_ = unmerge_ = adapter_state = load_adapter_ = give

# %% calls_reveal: a solution that is shown earns nothing
for id in "2.1 2.2 2.3 2.4 2.5 2.6 2.7".split():
    try: lab.reveal(id)
    except Exception: pass
""",
    forging,
    "last",
)
