"""What runs beside the learner's code in lab 6, and brings plain data back to its checks."""

import torch

from labkit.contract import CheckFailed

ORDERS = "the states have their keys in other orders: take each tensor by its name"
SOUP = {  # what an error of `soup` says -> a hint
    "'weights'": "keep the default, weights=None",
    "size of tensor": ORDERS,
    "stack expects each tensor": ORDERS,
}


def merged(merged_weight, W, A, B, alpha):
    """What it returns."""
    return _torch(merged_weight(W, A, B, alpha))


def _torch(result):
    """`result`; CheckFailed where NumPy arrays stand in it for tensors."""
    parts = result.values() if isinstance(result, dict) else result
    parts = parts if isinstance(result, dict | list | tuple) else [result]
    if any(type(part).__module__ == "numpy" for part in parts):
        raise CheckFailed("it returned a NumPy array, wanted a tensor: torch.from_numpy(…)")
    return result


def merged_quantized(merge_quantized, W4, absmax, codebook, A, B, alpha, shape):
    """What it returns; some errors are explained."""
    n, blocks = W4.numel(), absmax.numel()
    scales = "each entry of absmax is for 64 neighbours: repeat_interleave(64)"
    hints = [
        (str(2 * n), "W4 holds one code a byte, there is nothing to unpack"),
        (f"({blocks})", scales),
        (f"({32 * blocks})", scales),
        (f"({n}) must match the size of tensor b ({shape[1]})", "W4 is flat: reshape(shape) first"),
        (f"({64 * blocks})", "the last block may be shorter: cut the scales to W4.numel()"),
    ]
    try:
        return _torch(merge_quantized(W4, absmax, codebook, A, B, alpha, torch.Size(shape)))
    except (IndexError, RuntimeError) as error:
        hint = next((hint for sign, hint in hints if sign in str(error)), None)
        error.args = (f"{error}; {hint}",) if hint else error.args
        raise


STORES = {
    "as it is": lambda x: x,
    "grid": lambda x: (x / 0.25).round() * 0.25,
    "fine": lambda x: (x / 2**-12).round() * 2**-12,
    "whole": torch.round,
    "blocks": lambda x: _in_blocks(x, 8),
    "bf16": torch.Tensor.bfloat16,
}


def _in_blocks(x, size):
    """Each run of `size` neighbours rounded to fifteen even steps from -absmax to absmax."""
    blocks = x.reshape(-1, size)
    scale = blocks.abs().amax(1, keepdim=True).clamp_min(1e-12) / 7
    return ((blocks / scale).round() * scale).reshape(x.shape)


def stored(name, x):
    """A matrix after a round trip through a store; whatever it is in, the store sees fp32."""
    return STORES[name](x.detach().float())


def arrived(arrives, W, dW, name):
    """What it returns for the store of that name."""
    return arrives(W, dW, lambda x: stored(name, x))


def combined(combine, adapters, weights):
    """What it returns."""
    return _torch(combine(adapters, weights))


def souped(soup, states, weights):
    """What it returns; weights=None is left to the default."""
    try:
        return _torch(soup(states) if weights is None else soup(states, weights))
    except (RuntimeError, TypeError) as error:
        hint = next((hint for sign, hint in SOUP.items() if sign in str(error)), None)
        error.args = (f"{error}; {hint}",) if hint else error.args
        raise


def soup_error(soup, states, weights):
    """The message of what `soup` raises, else the tensors that it made, if it made a dict of such.

    weights=None is left to the default.
    """
    try:
        made = souped(soup, states, weights)
    except NotImplementedError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    tensors = isinstance(made, dict) and all(isinstance(t, torch.Tensor) for t in made.values())
    return {str(name): tensor for name, tensor in made.items()} if tensors else None
