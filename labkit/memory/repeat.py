"""Simulate a deep model from two short models, since the layers repeat.

The two short models differ by one period of layers. The events that only the longer model has are
what every further period allocates and frees, at the same points of the step. Nothing is fitted:
event by event, the extended step equals the whole model's step.
"""

import copy
from itertools import count

import numpy as np
from transformers import PretrainedConfig

LONGEST = 12  # most layers in a period
INDICES = ("moe_layers", "mlp_only_layers")  # fields that list the layers of one kind
# fields with the number of layers before the first layer with experts
DENSE = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
ALIKE = 64  # events that must agree for two points of a step to match


def shorter(config: PretrainedConfig) -> tuple[PretrainedConfig, PretrainedConfig, int] | None:
    """Two short versions of `config`, and how many periods the first lacks; None if no gain."""
    n_layers = getattr(config, "num_hidden_layers", 0)
    kinds, best = _kinds(config, n_layers), None
    for period in range(1, min(LONGEST, n_layers // 4) + 1):
        first = next(i for i in count() if kinds[i:-period] == kinds[i + period :])
        few = first + max(2, period)  # every kind, and a first layer without input gradient
        few += (n_layers - few) % period
        if 2 * few + period < n_layers and (best is None or few + period < sum(best)):
            best = few, period
    if best is None:
        return None
    few, period = best
    return _cut(config, few), _cut(config, few + period), (n_layers - few) // period


def _kinds(config, n_layers):
    """A key for each layer; equal layers have equal keys."""
    lists = _lists(config, n_layers)
    chosen = [getattr(config, name, None) or () for name in INDICES]
    dense = max(getattr(config, name, 0) or 0 for name in DENSE)
    every = getattr(config, "decoder_sparse_step", 1) or 1
    return [
        (
            *(x[i] for x in lists.values()),
            *(i in x for x in chosen),
            i < dense,
            (i + 1) % every == 0,
        )
        for i in range(n_layers)
    ]


def _cut(config, n_layers):
    """The configuration with only its first `n_layers` layers."""
    short, whole = copy.deepcopy(config), config.num_hidden_layers
    short.num_hidden_layers = n_layers
    for name, x in _lists(config, whole).items():
        setattr(short, name, x[:n_layers])
    for name in INDICES:
        if getattr(config, name, None):
            setattr(short, name, [i for i in getattr(config, name) if i < n_layers])
    return short


def _lists(config, n_layers):
    fields = {name: x for name, x in config.to_dict().items() if name not in INDICES}
    return {name: x for name, x in fields.items() if isinstance(x, list) and len(x) == n_layers}


def drawn_out(short: np.ndarray, longer: np.ndarray, times: int) -> np.ndarray | None:
    """Extend the events of a step by `times` periods; `longer` has one period more than `short`.

    short, longer: arrays (events, categories) with the change in bytes at each event.

    None unless `longer` differs from `short` only by insertions or larger releases.
    """
    _, names = np.unique(np.concatenate([short, longer]), axis=0, return_inverse=True)
    a, b = names[: len(short)], names[len(short) :]
    parts, i, j = [short[:0]], 0, 0
    while j < len(b):
        same = _alike(a[i:], b[j:])
        parts.append(short[i : i + same])
        i, j = i + same, j + same
        if j == len(b):
            break
        n = _inserted(_loose(short[i:], a[i:]), _loose(longer[j:], b[j:]))
        if n:
            parts.append(np.tile(longer[j : j + n], (times, 1)))
            j += n
        elif n == 0 and i < len(a):  # one release for all layers
            parts.append((short[i] + times * (longer[j] - short[i]))[None])
            i, j = i + 1, j + 1
        else:
            return None
    return np.concatenate(parts) if i == len(a) else None


def _alike(a, b):
    """The length of the common prefix of two event lists."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def _loose(events, names):
    """The events' names, with one name for all releases."""
    return np.where(events.sum(axis=1) < 0, -1, names)


def _inserted(a, b):
    """Count the events of `b` before the start of `a`; None if unclear.

    All of `b`'s extra events if the rest is equal; else the fewest events before a match.
    """
    rest = len(b) - len(a)
    if rest >= 0 and np.array_equal(a, b[rest:]):
        return rest
    window = a[:ALIKE]
    places = range(len(b) - len(window) + 1)
    return next((n for n in places if np.array_equal(window, b[n : n + len(window)])), None)
