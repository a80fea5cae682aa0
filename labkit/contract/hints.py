"""What an exception in a learner's code may mean, in a few words, whichever check met it."""

import importlib.util
import math
import re
import sys

SHORT = {"np": "numpy as np", "pd": "pandas as pd", "plt": "matplotlib.pyplot as plt"}
SHORT |= {"F": "torch.nn.functional as F", "nn": "torch.nn as nn", "tqdm": "tqdm"}
TURN = "is a transpose (.T) missing or one too many?"
SEVERAL = "this tensor holds several numbers: sum them, pick one, or go through them"
GRAD = "change it in place, under torch.no_grad()"
PARAMETERS = "the call and the def line differ in their parameters; leave those of the cell"
ENTRIES = "do the two have the shapes you think? (* and + go entry by entry; @ is the product)"
GUESSES = (TURN, ENTRIES)  # of what may be wrong: who knows the exercise, knows better
HINTS = {  # a piece of an exception's text: what may be behind it
    "shapes cannot be multiplied": TURN,
    "size mismatch, got input": TURN,
    "first two dimensions of batch": ".T turns all axes round; with more than two use .mT, or "
    "multiply from the other side",
    "size of tensor a": ENTRIES,
    "batches of square matrices": "only a square matrix has eigenvalues or an inverse; any has an "
    "SVD",
    "to a 0-dim tensor": "that is one number, already taken out of a vector",
    "return_types": "max and min over an axis give a pair: take its .values, or use amax and amin",
    "'torch.Size'": "a shape has several sides; numel() is their product",
    "is ambiguous": "`if`, `and`, `or`, `max` ask for one truth value, and these are many",
    "shape of the mask": "a uint8 index is taken for a mask: convert it, .long()",
    "leaf Variable that requires grad": "change it under torch.no_grad()",
    "non-leaf Tensor": GRAD,
    "as parameter 'weight'": GRAD,
    "does not require grad and": "something on the way was detached, or made under no_grad()",
    "numpy() on Tensor that requires": "stay with torch, or .detach() it first",
    "to have the same dtype": "bring one to the other's, .to(other.dtype)",
    "must be Tensor, not": "torch wants a tensor there, and this is none",
    "element tensors can be converted": SEVERAL,
    "cannot be converted to Scalar": SEVERAL,
    "only integer tensors": SEVERAL,
    "unhashable type: 'list'": "is a list inside another one?",
    "unhashable type: 'dict'": "sets and keys hold no dict: compare dicts with ==",
    "object is not callable": "is it still a function, begun by def?",
    "'method'": "are the brackets of a call missing?",
    "builtin_function_or_method'": "are the brackets of a call missing?",
    "'NoneType'": "something gave None there: what works in place, or has no `return`, does",
    "has no attribute 'append'": "collect dicts in a list, and make one table of it at the end",
    "'numpy.ndarray' object has no": "that is a NumPy array, no tensor: torch.from_numpy()",
    "too many values to unpack": "there are more parts than names on the left (of a dict a loop "
    "gives the keys: .values(), .items())",
    "'Parameter' object has no": "that is a weight by itself, and not the layer that holds it",
    "'str' object has no": "that is text, such as a name, and not the thing of that name",
    "not enough values to unpack": "there are fewer parts than names on the left",
    "changed size during iteration": "go through list(…) of it",
    "index out of range": "places are counted from 0, so the last is one below their number",
    "is out of bounds": "places are counted from 0, so the last is one below their number",
    "missing 1 required positional": PARAMETERS,
    "missing 2 required positional": PARAMETERS,
    "positional arguments but": PARAMETERS,
    "unexpected keyword argument": "do the parameters have the names that the text says?",
    "cannot access local variable": "on this way through the function nothing was put into it",
    "division by zero": "what is 0 there, and what should come then?",
    "maximum recursion depth": "it calls itself without an end",
}


def hint(what: str) -> str:
    """`; …` on the text of an exception, such as `NameError: name 'np' is not defined`; or ""."""
    if unknown := re.search(r"name '(\w+)' is not defined", what):
        return f"; {_unknown(unknown[1])}"
    if shaped := re.search(r"shape '\[([-\d, ]+)\]' is invalid for input of size (\d+)", what):
        return f"; {_unfit(shaped[1], int(shaped[2]))}"
    found = next((told for sign, told in HINTS.items() if sign in what), "")
    return f"; {found}" if found else ""


def _unfit(sizes, n):
    """What to say of a reshape to `sizes`, a text, of `n` numbers."""
    made = math.prod(abs(int(size)) for size in sizes.split(","))
    if "-1" in sizes:
        return f"{n} numbers cannot be shared out into parts of {made}"
    return f"{sizes.replace(', ', ' * ')} is {made}, and there are {n} numbers"


def _unknown(name):
    """What to say of a name that nothing defines."""
    if hasattr(math, name):
        return f"it is math.{name}"
    if name in SHORT:
        return f"`import {SHORT[name]}` is missing"
    if name in sys.stdlib_module_names or importlib.util.find_spec(name):
        return f"`import {name}` is missing"
    return "was the cell that defines or imports it run, and is it spelled so there?"
