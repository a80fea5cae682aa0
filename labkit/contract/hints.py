"""What an exception in a learner's code may mean, in a few words, for all checks."""

import importlib.util
import math
import re
import sys

SHORT = {"np": "numpy as np", "pd": "pandas as pd", "plt": "matplotlib.pyplot as plt"}
SHORT |= {"F": "torch.nn.functional as F", "nn": "torch.nn as nn", "tqdm": "tqdm"}
TURN = "the inner dimensions must match: check each transpose (and full_matrices=False in an SVD)"
SEVERAL = "this tensor has several elements: sum them, pick one, or loop over them"
GRAD = "change it in place, under torch.no_grad()"
PARAMETERS = "the call doesn't match the def line; keep the parameters given in the cell"
ENTRIES = "check the two shapes (* and + work element by element; @ is the matrix product)"
HINTS = {  # part of an exception's text: a likely cause
    "shapes cannot be multiplied": TURN,
    "size mismatch, got input": TURN,
    "first two dimensions of batch": "with more than two axes, .T reverses all of them: multiply "
    "from the other side (x @ W.T)",
    "size of tensor a": ENTRIES,
    "batches of square matrices": "only a square matrix has eigenvalues or an inverse; use the SVD",
    "to a 0-dim tensor": "this is a single number already, not a vector",
    "return_types": "max and min over an axis return a pair: take .values, or use amax and amin",
    "'torch.Size'": "a shape has several sizes; numel() is their product",
    "is ambiguous": "`if`, `and`, `or` and `max` need one truth value, but this array has many",
    "shape of the mask": "slice the mask like the tensor that it selects from (a uint8 index "
    "also counts as a mask: convert it with .long())",
    "leaf Variable that requires grad": "change it under torch.no_grad()",
    "non-leaf Tensor": GRAD,
    "as parameter 'weight'": GRAD,
    "does not require grad and": "a tensor along the way was detached, or created under no_grad()",
    "numpy() on Tensor that requires": "use torch functions, or call .detach() first",
    "to have the same dtype": "convert one to the other's dtype with .to(other.dtype)",
    "must be Tensor, not": "torch expects a tensor here",
    "element tensors can be converted": SEVERAL,
    "cannot be converted to Scalar": SEVERAL,
    "only integer tensors": SEVERAL,
    "before Module.__init__": "call super().__init__() first",
    "unhashable type: 'list'": "is there a list inside another list?",
    "unhashable type: 'dict'": "sets and keys can't contain dicts: compare dicts with ==",
    "object is not callable": "is it still a function, defined with def?",
    "method'": "are the parentheses of a call missing?",
    "'NoneType'": "a value is None: an argument, or the result of a function with no `return`",
    "has no attribute 'append'": "collect dicts in a list, then make one DataFrame at the end",
    "'numpy.ndarray' object has no": "this is a NumPy array, not a tensor: torch.from_numpy()",
    "too many values to unpack": "there are more values than names on the left (looping over a "
    "dict gives its keys: use .values() or .items())",
    "'Parameter' object has no": "this is a weight, not the layer that contains it",
    "'str' object has no": "this is a name, not the object with that name",
    "not enough values to unpack": "there are fewer values than names on the left",
    "changed size during iteration": "loop over a copy made with list(…)",
    "index out of range": "indices start at 0, so the last one is the length minus 1",
    "is out of bounds": "indices start at 0, so the last one is the length minus 1",
    "required positional argument": PARAMETERS,
    "positional arguments but": PARAMETERS,
    "unexpected keyword argument": "do the parameters have the names given in the text?",
    "cannot access local variable": "on this path through the function, nothing was assigned to it",
    "division by zero": "what is 0 here, and what should the result be then?",
    "maximum recursion depth": "it needs over 1,000 nested calls, or never stops: use a loop",
}


def hint(what: str) -> str:
    """`; …` for the text of an exception, such as `NameError: name 'np' is not defined`; or ""."""
    if unknown := re.search(r"name '(\w+)' is not defined", what):
        return f"; {_unknown(unknown[1])}"
    if shaped := re.search(r"shape '\[([-\d, ]+)\]' is invalid for input of size (\d+)", what):
        return f"; {_unfit(shaped[1], int(shaped[2]))}"
    if what.startswith("KeyError"):  # its text is the learner's key, such as 'method'
        return ""
    found = next((message for sign, message in HINTS.items() if sign in what), "")
    return f"; {found}" if found else ""


def _unfit(sizes, n):
    """The hint for a reshape of `n` numbers to `sizes`, a text."""
    made = math.prod(abs(int(size)) for size in sizes.split(","))
    if "-1" in sizes:
        return f"{n} numbers can't be split into parts of {made}"
    return f"{sizes.replace(', ', ' * ')} is {made}, but there are {n} numbers"


def _unknown(name):
    if hasattr(math, name):
        return f"did you mean math.{name}?"
    if name in SHORT:
        return f"`import {SHORT[name]}` is missing"
    spec = None if name in sys.stdlib_module_names else importlib.util.find_spec(name)
    if name in sys.stdlib_module_names or (spec and spec.origin):  # a folder has none
        return f"`import {name}` is missing"
    return "did you run the cell that defines or imports it, and is it spelled the same there?"
