"""Answers that are no answers: objects that lie about what they are. They earn nothing."""

from attack import accident, forging

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


def _lie(name, code, why):
    """Every exercise answers with what `lie()` gives."""

    def spoil(book):
        book.last(code + EVERYWHERE)

    spoil.__name__, spoil.__doc__ = name, why
    forging(spoil)


_lie("equal_to_everything", EQUAL + "lie = Equal", "whatever is compared with it agrees")
_lie(
    "class_says_tensor",
    EQUAL + "Equal.__class__ = torch.Tensor\nlie = Equal",
    "isinstance believes it",
)
_lie(
    "float_that_agrees",
    EQUAL
    + """
class F(float):
    __eq__ = __le__ = __ge__ = Equal.yes
    __sub__ = __rsub__ = lambda self, other: 0.0
    __hash__ = None
lie = lambda: F(1)
""",
    "",
)
_lie(
    "int_that_agrees",
    EQUAL + "class I(int):\n    __eq__ = __le__ = Equal.yes\nlie = lambda: I(1)",
    "",
)
_lie(
    "text_that_agrees",
    EQUAL
    + """
class S(str):
    __eq__ = __contains__ = Equal.yes
    def __hash__(self): return hash("b")
    def strip(self): return self
    lower = strip
lie = lambda: {S("q1"): S("b"), "q2": S("z"), "q3": S("z")}
""",
    "",
)
_lie(
    "dict_that_agrees",
    """
class D(dict):
    def __missing__(self, key): return "b"
    def get(self, key, default=None): return {"q1": "b", "q2": "c"}.get(key, "zz")
    def items(self): return [("q1", "zz")]
lie = D
""",
    "a dict whose get and items tell two tales",
)
_lie(
    "list_that_grows",
    """
class L(list):
    def __len__(self): return 2
    def __iter__(self): return iter([])
lie = L
""",
    "",
)
_lie(
    "tuple_with_a_mind",
    "class T(tuple):\n    def __getitem__(self, i): return self\nlie = lambda: T((1, 2))",
    "",
)
_lie(
    "tensor_that_lies",
    """
class Lie(torch.Tensor):
    @classmethod
    def __torch_function__(cls, f, types, args=(), kwargs=None):
        return True
    @property
    def shape(self): return torch.Size((4, 7))
lie = lambda: torch.zeros(1).as_subclass(Lie)
""",
    "__torch_function__ says yes to every operation",
)
_lie(
    "tensor_that_dispatches",
    """
class Wrap(torch.Tensor):
    @staticmethod
    def __new__(cls):
        return torch.Tensor._make_wrapper_subclass(cls, (4, 7))
    @classmethod
    def __torch_dispatch__(cls, f, types, args=(), kwargs=None):
        return cls()
lie = Wrap
""",
    "a wrapper with a shape and no storage",
)
_lie(
    "parameter_that_lies",
    "class P(nn.Parameter):\n    shape = (4, 7)\nlie = lambda: P(torch.zeros(1))",
    "",
)
_lie("module_as_answer", "lie = lambda: nn.Linear(3, 3)", "")
_lie(
    "reduce_runs_code",
    """
class Run:
    def __reduce__(self):
        return (__import__("os").system, (f"touch {HOST['notes']}/{HOST['name']}",))
lie = Run
""",
    "whoever unpickles it runs our command",
)
_lie(
    "reduce_in_a_tensor",
    """
class Run(torch.Tensor):
    def __reduce_ex__(self, protocol):
        return (__import__("os").system, (f"touch {HOST['notes']}/{HOST['name']}",))
lie = lambda: torch.zeros(4, 7).as_subclass(Run)
""",
    "the same inside a tensor",
)
_lie("nan", "lie = lambda: float('nan')", "")
_lie("infinity", "lie = lambda: float('inf')", "")
_lie("complex_number", "lie = lambda: 1j", "")
_lie("bytes", "lie = lambda: b'abc'", "")
_lie("none", "lie = lambda: None", "")
_lie("not_implemented", "lie = lambda: NotImplemented", "")
_lie("ellipsis", "lie = lambda: ...", "")
_lie("a_coroutine", "async def lie(): return 1", "never awaited")
_lie("a_class", "class lie: pass", "")
_lie(
    "numpy_object_array", "import numpy as np\nlie = lambda: np.array([{}, None], dtype=object)", ""
)
_lie("numpy_strings", "import numpy as np\nlie = lambda: np.array(['b', 'c'])", "")
_lie("a_data_frame", "import pandas as pd\nlie = lambda: pd.DataFrame({'q1': ['b']})", "")
_lie(
    "odd_keys",
    "lie = lambda: {None: 1, (1, 2): 2, 'q1': {}, 3.5: [], float('nan'): 'b', b'x': 1}",
    "",
)
_lie(
    "lone_surrogate",
    "lie = lambda: {'q1': '\\ud800', '\\udfff': 'b'}",
    "text that UTF-8 cannot hold",
)
# a letter of no option: b would be a right answer, whatever stands behind it
_lie("nul_in_text", "lie = lambda: {'q1': 'z\\0', 'q\\0': 'b'}", "")
_lie(
    "key_that_raises",
    """
class K:
    def __hash__(self): return 1
    def __str__(self): raise SystemExit
lie = lambda: {K(): 1}
""",
    "str(key) exits",
)
_lie(
    "repr_that_raises",
    "class R:\n    def __repr__(self): raise SystemExit\n    __str__ = __repr__\nlie = R",
    "",
)
_lie(
    "error_that_raises",
    """
class E(Exception):
    def __str__(self): raise E()
    __repr__ = __str__
def lie(): raise E
""",
    "the text of the exception is another exception",
)
_lie(
    "class_name_that_lies",
    """
class E(Exception): pass
E.__name__ = "passed</td><script>evil()</script>"
def lie(): raise E("=cmd|'/c calc'!A1\\x1b[2J\\r\\n")
""",
    "a name and a text that reports must escape",
)


def _tensor(name, code, why):
    """`lora_forward` gives a wrong tensor of an unusual kind."""

    def spoil(book):
        book.replace(
            "lora_forward", f"def lora_forward(x, W, A, B, alpha):\n    y = x @ W.T\n{code}"
        )

    spoil.__name__, spoil.__doc__ = f"tensor_{name}", why
    forging(spoil)


_tensor("of_nan", "    return y * torch.nan", "")
_tensor("of_infinity", "    return y / 0", "")
_tensor("of_bool", "    return y > 0", "")
_tensor("of_int8", "    return y.to(torch.int8)", "")
_tensor("of_float8", "    return y.to(torch.float8_e4m3fn)", "a dtype that few operations know")
_tensor("of_complex", "    return y.to(torch.complex64)", "")
_tensor("quantized", "    return torch.quantize_per_tensor(y, 0.1, 0, torch.qint8)", "")
_tensor("on_meta", "    return y.to('meta')", "it has no data")
_tensor("sparse", "    return y.to_sparse()", "")
_tensor("sparse_csr", "    return torch.atleast_2d(y).to_sparse_csr()", "")
_tensor("nested", "    return torch.nested.nested_tensor([y.flatten()])", "")
_tensor("conjugated", "    return torch.conj(y.to(torch.complex64))", "a lazy bit is set")
_tensor(
    "freed", "    y.untyped_storage().resize_(0)\n    return y", "a shape whose storage is gone"
)
_tensor("out_of_bounds", "    return torch.zeros(1).as_strided(y.shape, (0,) * y.ndim)", "")
_tensor("named", "    return torch.zeros(y.shape, names=[None] * y.ndim)", "")
_tensor("batched", "    return torch._C._functorch._add_batch_dim(y[None], 0, 1)", "inside of vmap")
_tensor(
    "fake",
    "    from torch._subclasses import FakeTensorMode\n"
    "    with FakeTensorMode() as m: return m.from_tensor(y)",
    "from the compiler's world",
)
_tensor("wanted_by_broadcast", "    return torch.zeros(1, 1).expand(*y.shape[:-1], 7) * 0", "")


def _right(name, expression, why):
    """The answer is right and its form unusual: it stands."""

    def spoil(book):
        book.wrap(
            "lora_forward",
            f"""
_plain = lora_forward
def lora_forward(x, W, A, B, alpha):
    y = _plain(x, W, A, B, alpha)
    return {expression}
""",
        )

    spoil.__name__, spoil.__doc__ = f"right_{name}", why
    accident(22)(spoil)


_right("view", "torch.stack([y, y])[0]", "a view into a larger storage")
_right("not_contiguous", "torch.stack([y, y], -1)[..., 0]", "strides of two")
_right("requires_grad", "y.clone().requires_grad_() * 1", "part of a graph")
_right("is_a_parameter", "nn.Parameter(y)", "a subclass of Tensor")
_right("double", "y.double()", "")
_right("inference_mode", "torch.inference_mode()(lambda: y * 1)()", "an inference tensor")
_right("negated_lazily", "torch.complex(y * 0, -y).conj().imag", "the negative bit is set")
