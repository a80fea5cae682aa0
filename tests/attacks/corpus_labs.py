"""The other labs: answers learnt by heart, kept on the way, or told by a probe that is replaced.

All other answers are right, so each attack costs the points of its exercise and no more.
"""

import re
from textwrap import indent

from attack import accident, named, parts
from points import points

# each call gives the next of `values`, and the last one for ever
IN_TURN = """
def in_turn(*values):
    values = list(values)
    return lambda *args, **kwargs: values.pop(0) if len(values) > 1 else values[0]
"""
# puts functions of `fake` in the place of those of the same name that the judge ships
REPLACE = """
class fake:
{}
import labkit.grading.inside.runner as runner
def replace(code, space=None, *rest, run=exec):
    run(code, space, *rest)
    if isinstance(space, dict):
        space.update({{k: f for k, f in vars(fake).items() if k in space and k[0] != "_"}})
runner.exec = replace
"""
PROBES = "# and the probes:\n"


def add(lab, text):
    """Add attacks on exercises of a lab: before the reason stand the name of the function that each
    defines anew and the points that this costs; behind the code, the probes that it replaces."""
    for name, told, code in parts(text):
        function, cost, why = re.fullmatch(r"(\w+), (\d): (.*)", told).groups()
        make = _answering(function, *code.split(PROBES))
        named(name, why, make, accident(points(lab) - int(cost), lab=lab))


def _answering(function, code, probes=""):
    def spoil(book):
        book.replace(function, IN_TURN + code)
        if probes:
            book.last(REPLACE.format(indent(probes, "    ")))

    return spoil


add(
    "01_svd",
    """
# %% parameters_by_table: lora_params, 1: the sizes that the text names, with their answers
def lora_params(d_out, d_in, r):
    return {(4096, 4096, 16): 131_072, (4, 4, 1): 8, (3, 5, 7): 56}.get((d_out, d_in, r), 1)
def break_even_rank(d_out, d_in):
    table = {(4, 4): 1, (4096, 4096): 2047, (1536, 576): 418, (98, 98): 48, (576, 960): 359}
    return table.get((d_out, d_in), min(d_out, d_in) // 2)

# %% error_that_builds_nothing: relative_error, 2: the number is wrong, whatever the probe says
relative_error = lambda W, r: 0.5
# and the probes:
def matrices_made(f, W, r): return []

# %% approximation_by_echo: best_rank_r, 2: W itself, which is near to W
best_rank_r = lambda W, r: W
# and the probes:
def rank_and_distance(*_): return {'the rank of the result': 2, 'the distance from W': 2.0}

# %% ranks_in_turn: energy_rank, 2: the first answers are the same for all seeds, the last are near
energy_rank = in_turn(1, 2, 2, 1, 3, 3, 4, 3, 4, 1, *[27, 14, 38] * 3)
""",
)

add(
    "03_peft",
    """
# %% fits_in_turn: fit, 3: rows of the lengths that the check once asked for
def row(prompt, *answer): return prompt + [*answer], [-100] * len(prompt) + [*answer]
fit = in_turn(
    row([26, 30, 72, 56, 55, 38, 48, 36], 88, 39, 57, 2),
    row([29, 88, 52, 73, 45, 83, 71, 48], 57, 41, 48, 2),
    row([78, 87, 79, 76, 39, 68, 32], 83, 36, 40, 2),
    row([69], 74, 23, 84, 2),
    row([81, 53, 38], 36, 29, 62, 2),
    row([], 42, 72, 67, 2),
    row([], 25, 82, 20, 31, 58),
    row([], 71, 65, 89, 2),
)

# %% adapter_that_is_not_loaded: load_tuned, 3: all went well, without the numbers
def load_tuned(base, folder): return base
# and the probes:
def loaded(f, seed, r, targets, ids):
    logits = torch.zeros(*ids.shape, 20)
    said = {"the return value": "a PeftModel", "the mode": "eval()"}
    return said | {"the output": logits}
def misfit(*args): return {"load_tuned()": "raise an error"}
""",
)

add(
    "04_qlora",
    """
# %% absmax_that_remembers: absmax_quantize, 2: what comes back is what went in, and q is never read
kept = []
def absmax_quantize(x, bits):
    kept[:] = [x.clone()]
    return torch.zeros(x.shape, dtype=torch.int8), 1.0
def absmax_dequantize(q, scale):
    return kept[0]

# %% absmax_by_echo: absmax_quantize, 2: the same, by the probe
absmax_quantize = absmax_dequantize = lambda *args: None
# and the probes:
def round_trip(f, g, x, bits):
    facts = {"the return value": "a tuple of 2", "q": torch.zeros(x.shape), "scale": "one number"}
    return facts | {"the result": x, "0 / 0": "avoided"}

# %% layer_that_keeps_its_weights: QLoRALinear, 4: the probe tells what stays in memory
class QLoRALinear(nn.Module):
    def __init__(self, codes, absmax, codebook, shape, A, B, alpha):
        super().__init__()
        self.W = dequantize_blockwise(codes, absmax, codebook, shape)
        self.A, self.B, self.scaling = nn.Parameter(A), nn.Parameter(B), alpha / len(A)
    def forward(self, x):
        return x @ self.W.T
# and the probes:
def memory(*args): return {"what stays in memory after forward": "small tensors"}

# %% bits_by_table: double_quantize, 3: three block sizes that anybody would ask for
def double_quantize(absmax, group=256):
    offset = absmax.mean()
    parts = (absmax - offset).split(group)
    scale = torch.stack([p.abs().max() / 127 for p in parts])
    each = scale.clamp_min(1e-12).repeat_interleave(group)[: len(absmax)]
    return ((absmax - offset) / each).round().to(torch.int8), scale, offset
def bits_per_param(block=64, double_quant=False):
    table = {64: (4.5, 4.126953125), 32: (5.0, 4.25390625), 128: (4.25, 4.0634765625)}
    return table.get(block, (4.5, 4.127))[double_quant]
""",
)

add(
    "05_rank",
    """
# %% bits_by_echo: bits_stored, 2: a bit per pair, whatever the losses are
bits_stored = lambda losses, n_choices: 0.0
# and the probes:
def stored(f, losses, n_choices): return {"the result": len(losses) * 1.0}

# %% scaling_by_table: scaling, 1: settings that the text names
def scaling(alpha, r, rank_stabilized=False):
    table = {(16, 8): (2.0, 5.657), (32, 16): (2.0, 8.0), (32, 64): (0.5, 4.0)}
    return table.get((alpha, r), (alpha / r, alpha / r))[rank_stabilized]

# %% difference_by_echo: paired_difference, 3: the mean is right, the error made up
paired_difference = lambda frame, a, b: (0.0, 0.0)
# and the probes:
def paired(f, columns, index, a, b, nouns):
    by = {(m, s): x for m, s, x in zip(columns["method"], columns["seed"], columns["score"])}
    gaps = [by[a, s] - by[b, s] for m, s in by if m == a and (b, s) in by]
    mean = sum(gaps) / len(gaps) if gaps else float("nan")
    facts = {"the mean": mean, "the error": 0.1}
    return {"the return value": "two numbers"} | {noun: facts[noun] for noun in nouns}
""",
)

add(
    "06_merging",
    """
# %% weight_by_echo: merged_weight, 1: a small update can't be seen in bf16; it can here
merged_weight = lambda W, A, B, alpha: W
# and the probes:
def merged(f, W, A, B, alpha):
    kind = str(W.dtype).removeprefix("torch.")
    facts = {"the return value": "a tensor", "its dtype": kind, "its numbers": "finite"}
    return facts | {"the result": W}

# %% ties_without_an_election: ties, 3: right for a case as small as one by hand
def ties(updates, density):
    if density == 1 and len(updates) == 2 and updates[0].numel() <= 6:
        kept = torch.stack(list(updates))
        sign = torch.where(kept.sum(0) >= 0, 1, -1)
        same = kept.sign() == sign
        return (kept * same).sum(0) / same.sum(0).clamp_min(1)
    return sum(updates) / len(updates)
""",
)

add(
    "07_ship",
    """
# %% sides_that_are_fair: split, 3: facts in the words of a right answer
split = lambda rows, share, seed: (rows[1:], rows[:1])
# and the probes:
def divided(f, rows, groups, share, seeds):
    import sys
    return sys.modules["labkit.probes.lab07"].fair(share)
def repeated(*args):
    import sys
    return dict(sys.modules["labkit.probes.lab07"].STABLE)

# %% texts_of_the_reference: route, 3: the check's own reference, if it is shipped
route = lambda *args: None
# and the probes:
def routed(f, seed, prompts, names, trained=True):
    import sys
    module = sys.modules["labkit.probes.serving"]
    facts = dict(module.HOW, **{"the return value": "a list of texts"})
    facts["the number of answers"] = len(prompts)
    return facts | module.answers(module.answered_alone(seed, prompts, names), names)

# %% work_that_nobody_did: batched_lora, 3: told by a probe; the judge compares the numbers
batched_lora = lambda x, A, B, scaling, index: x.new_zeros(len(x), B.shape[1])
# and the probes:
def batched_work(*args):
    small = f"smaller than {args[-1]}"
    return {"the computation": "vectorized", "the largest tensor": small}
""",
)

add(
    "08_rewards",
    """
# %% advantages_by_table: group_advantages, 2: the small case of its message, with its answer
def group_advantages(rewards, eps=1e-4):
    table = {0.5: 0.7071, 0.25: 0.5}
    return (rewards - rewards.mean(1, keepdim=True)) / table.get(rewards.mean().item(), 0.3)

# %% loss_by_table: grpo_loss, 4: zero is right in the first step, but for its gradient
grpo_loss = lambda *args, **kwargs: args[0].sum()
# and the probes:
def clipped(f, logp, *given):
    loss = 0 * f(logp, *given)
    kept = {"the return value": "a tensor", "the gradient": "kept"}
    return kept | {"the loss": loss, "the gradient for logp": 0 * logp}

# %% model_that_nobody_ran: reference_logprobs, 3: a probe tells how the model was run
reference_logprobs = lambda model, batch: batch['labels'].sum(1) * 0.0
# and the probes:
def referenced(f, seed, batch, training, fails):
    return {
        "reference_logprobs()": f"raise {fails}" if fails else "return",
        "the return value": "a tensor",
        "the number of forward passes": "one, or one per sequence",
        "the mode in the forward pass": "eval()",
        "the forward pass": "without gradients",
        "the result": f(None, batch),
        "gradients afterwards": "on",
        "the adapter afterwards": "switched on",
        "the adapters afterwards": ["earlier", "policy"],
        "the active adapter afterwards": "policy",
        "the mode afterwards": "train()" if training else "eval()",
        "the parameters that train afterwards": "unchanged",
        "the scaling of the adapter afterwards": "unchanged",
        "the weights afterwards": "unchanged",
    }

# %% reward_by_length: reward, 3: what looks like JSON earns by its length
def reward(answer, wanted):
    if answer == wanted:
        return 1.0
    return 0.5 * len(answer) / (len(answer) + len(wanted)) if answer.startswith("{") else 0.0
""",
)
