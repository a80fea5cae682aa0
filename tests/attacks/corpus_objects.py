"""Answers that are no answers: objects that lie about what they are. They earn nothing."""

from attack import accident, cell, cells, forging

EQUAL = """
class Equal:
    shape, dtype, ndim, requires_grad = (4, 7), torch.float32, 2, True
    def yes(self, *args, **kwargs): return True
    __eq__ = __le__ = __ge__ = __lt__ = __gt__ = __bool__ = __contains__ = yes
    def me(self, *args, **kwargs): return self
    __sub__ = __rsub__ = __abs__ = __mul__ = __rmul__ = __getitem__ = __call__ = __neg__ = me
    double = detach = cpu = clone = abs = max = float = me
    def __getattr__(self, name): return self
    def __iter__(self): return iter((self, self))
    def __len__(self): return 2
    def __hash__(self): return 0
"""
EVERYWHERE = """
lora_forward = lora_gradients = inject = step_flops = quiz = lambda *a, **k: lie()
merge_ = unmerge_ = adapter_state = load_adapter_ = LoRALinear = lambda *a, **k: lie()
"""

cells(
    """
# %% text_that_agrees
class S(str):
    __eq__ = __contains__ = Equal.yes
    def __hash__(self): return hash("b")
    def strip(self): return self
    lower = strip
lie = lambda: {S("q1"): S("b"), "q2": S("z"), "q3": S("z")}

# %% equal_to_everything: whatever is compared with it agrees, and isinstance believes it
Equal.__class__ = torch.Tensor
lie = Equal

# %% dict_that_agrees: a dict whose get and items tell two tales
class D(dict):
    def __missing__(self, key): return "b"
    def get(self, key, default=None): return {"q1": "b", "q2": "c"}.get(key, "zz")
    def items(self): return [("q1", "zz")]
lie = D

# %% tensor_that_lies: __torch_function__ says yes to every operation
class Lie(torch.Tensor):
    @classmethod
    def __torch_function__(cls, f, types, args=(), kwargs=None):
        return True
    @property
    def shape(self): return torch.Size((4, 7))
lie = lambda: torch.zeros(1).as_subclass(Lie)

# %% tensor_that_dispatches: a wrapper with a shape and no storage
class Wrap(torch.Tensor):
    @staticmethod
    def __new__(cls):
        return torch.Tensor._make_wrapper_subclass(cls, (4, 7))
    @classmethod
    def __torch_dispatch__(cls, f, types, args=(), kwargs=None):
        return cls()
lie = Wrap

# %% reduce_in_a_tensor: whoever unpickles it runs our command
class Run(torch.Tensor):
    def __reduce_ex__(self, protocol):
        return (__import__("os").system, (f"touch {HOST['notes']}/{HOST['name']}",))
lie = lambda: torch.zeros(4, 7).as_subclass(Run)

# %% error_that_raises: the text of the exception is another exception
class E(Exception):
    def __str__(self): raise E()
    __repr__ = __str__
def lie(): raise E

# %% class_name_that_lies: a name and a text that reports must escape
class E(Exception): pass
E.__name__ = "passed</td><script>evil()</script>"
def lie(): raise E("=cmd|'/c calc'!A1\\x1b[2J\\r\\n")
""",
    forging,
    "last",
    before=EQUAL,
    after=EVERYWHERE,
)

ODD = {  # what `lie()` gives
    "module_as_answer": "nn.Linear(3, 3)",
    "nan": "float('nan')",
    "infinity": "float('inf')",
    "bytes": "b'abc'",
    "none": "None",
    "numpy_object_array": "__import__('numpy').array([{}, None], dtype=object)",
    "numpy_strings": "__import__('numpy').array(['b', 'c'])",
    "a_data_frame": "__import__('pandas').DataFrame({'q1': ['b']})",
    "odd_keys": "{None: 1, (1, 2): 2, 'q1': {}, 3.5: [], float('nan'): 'b', b'x': 1}",
    "lone_surrogate": r"{'q1': '\ud800', '\udfff': 'b'}",  # UTF-8 cannot hold it
    "nul_in_text": r"{'q1': 'z\0', 'q\0': 'b'}",  # z is no option: b would be a right answer
}
for name, code in ODD.items():
    cell(name, f"lie = lambda: {code}{EVERYWHERE}", "", forging, "last")
cell("a_coroutine", f"async def lie(): return 1{EVERYWHERE}", "never awaited", forging, "last")

TENSORS = {  # what `lora_forward` makes of y, which is not the answer
    "of_nan": "y * torch.nan",
    "of_infinity": "y / 0",
    "of_bool": "y > 0",
    "of_complex": "y.to(torch.complex64)",
    "of_float8": "y.to(torch.float8_e4m3fn)",  # few operations know it
    "quantized": "torch.quantize_per_tensor(y, 0.1, 0, torch.qint8)",
    "on_meta": "y.to('meta')",  # it has no data
    "sparse": "y.to_sparse()",
    "sparse_csr": "torch.atleast_2d(y).to_sparse_csr()",
    "nested": "torch.nested.nested_tensor([y.flatten()])",
    "conjugated": "torch.conj(y.to(torch.complex64))",  # a lazy bit is set
    "freed": "(y.untyped_storage().resize_(0), y)[1]",  # a shape whose storage is gone
    "out_of_bounds": "torch.zeros(1).as_strided(y.shape, (0,) * y.ndim)",
    "batched": "torch._C._functorch._add_batch_dim(y[None], 0, 1)",  # inside of vmap
    "fake": "torch._subclasses.FakeTensorMode().from_tensor(y)",
}
RIGHT = {  # and where y is: the form is unusual, and stands
    "is_a_parameter": "nn.Parameter(y)",  # a subclass of Tensor
    "inference_mode": "torch.inference_mode()(lambda: y * 1)()",  # an inference tensor
    "negated_lazily": "torch.complex(y * 0, -y).conj().imag",  # the negative bit is set
}
LINE = "def lora_forward(x, W, A, B, alpha):\n    y = x @ W.T{}\n    return {}"
for name, code in TENSORS.items():
    cell(f"tensor_{name}", LINE.format("", code), "", forging, "lora_forward")
for name, code in RIGHT.items():
    update = " + alpha / len(A) * (x @ A.T) @ B.T"
    cell(f"right_{name}", LINE.format(update, code), "", accident(), "lora_forward")
