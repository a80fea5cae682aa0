"""Checks of lab 4. The reference is the check's own formula, a dense layer, or autograd."""

from statistics import NormalDist

import torch

from labkit.checks.engine import expect_right
from labkit.checks.inputs import draw, randn
from labkit.checks.quiz import quiz_of
from labkit.contract import exercise, generator, part, sound
from labkit.probes import how
from labkit.probes import lab04 as probes

AVOIDED = {"0 / 0": "avoided"}


def _forms(**tensors):
    """The facts that `probes` finds about tensors of integers or floats, by name."""
    return {k: v for one in tensors.items() for k, v in probes.numbers(*one, flat=False).items()}


def _result(tensor):
    return probes.numbers("the result", tensor, flat=False)


def _expect_fast(answers, names, of, *data):
    """Expect vectorized functions; `data` has each function's inputs, few and many."""
    right = dict.fromkeys(names, "vectorized")
    cases = {f"to be fast with many {of}": (names, of, data)}
    expect_right(answers, cases, lambda *_: right, how.pace)


@exercise("4.1", points=2)
def absmax(absmax_quantize, absmax_dequantize):
    """integers for any number of bits, the same range for -x as for x, and zeros stay zeros"""
    rng, cases = generator(), {}
    x = torch.tensor([-6.0, 0.9, 3.5, 5.2, -2.9])
    cases["for x = [-6, 0.9, 3.5, 5.2, -2.9] at 3 bits"] = x, 3
    for b, sign, *shape in ((4, 1, 5, 8), (8, -1, 2, 3, 20), (3, 1, 30), (2, -1, 30), (4, -1, 1)):
        x = sign * _near(rng, b, *shape)
        cases[f"for x of shape {tuple(shape)} at {b} bits"] = x, b
    tiny = "for x = [-4e-12, 3e-12, 1e-12, 3e-12] at 2 bits"  # a guard of 1e-12 changes no integer
    cases[tiny] = torch.tensor([-4e-12, 3e-12, 1e-12, 3e-12]), 2
    cases["for a tensor of zeros at 4 bits"] = torch.zeros(5), 4
    expect_right((absmax_quantize, absmax_dequantize), cases, _absmax, probes.round_trip, tol=2e-4)


def _near(rng, bits, *shape):
    """Numbers far from a rounding boundary; the one with the largest absolute value is negative."""
    top = 2 ** (bits - 1) - 1
    whole = torch.randint(-top, top + 1, shape, generator=rng)
    x = (whole + 0.8 * torch.rand(shape, generator=rng) - 0.4).clamp(-top, 0.9 * top)
    x.view(-1)[0] = -top
    return x * (0.5 + torch.rand((), generator=rng))


def _absmax(x, bits):
    step = x.double().abs().max() / (2 ** (bits - 1) - 1)
    q = torch.round(x.double() / step).int() if step else torch.zeros(x.shape).int()
    facts = {"the return value": "a tuple of 2"} | _forms(q=q) | {"scale": "one number"} | AVOIDED
    return facts | probes.numbers("what comes back", q * step, flat=False)


@exercise("4.2", points=3)
def codebook(nf4_codebook):
    """the 16 values of bitsandbytes to within 1e-6, computed from quantiles"""
    facts = {
        "the result": "a tensor of floats",
        "the counts": "7 below zero, 1 at zero, 8 above",
        "the order": "ascending",
        "the codebook": nf4(),
        "the values": "computed",
    }
    expect_right(nf4_codebook, {"": ()}, lambda: facts, probes.codebook, tol=1e-6)


def nf4():
    """The 16 values of NF4, (16,) fp64."""
    quantile, end = NormalDist().inv_cdf, 0.9677083 - 0.5
    above = [quantile(0.5 + end * i / 8) for i in range(9)]
    below = [-quantile(0.5 + end * i / 7) for i in range(7, 0, -1)]
    return torch.tensor(below + above).double() / above[-1]


FOUR, SIX = torch.tensor([-1.0, 0, 0.5, 1]), torch.tensor([-1, -0.3, 0, 0.1, 0.45, 1])
SHAPES = (6, 64), (3, 100), (7,), (70,)  # of blocks of 64, of which the last may be shorter


@exercise("4.3", points=3)
def blockwise(quantize_blockwise, dequantize_blockwise):
    """the nearest code, also for a shorter last block, zeros and tiny numbers, and the way back"""
    rng, answers = generator(), (quantize_blockwise, dequantize_blockwise)
    there = _to_quantize(rng)
    with part():
        cases = {f"for quantize_blockwise{where}": data for where, data in there.items()}
        expect_right(quantize_blockwise, cases, _codes, probes.quantized)
    with part():
        expect_right(dequantize_blockwise, _to_restore(rng), _weights, probes.dequantized)
    if sound():
        some = [where for where in there if "of shape" in where]
        cases = {f"after both functions{where}": there[where] for where in some}
        expect_right(answers, cases, _back, probes.there_and_back)
    book, (few, many) = nf4().float(), (torch.linspace(-1, 1, 64 * n) for n in (4, 104))
    back = ((w.abs().to(torch.uint8), torch.ones(len(w) // 64), book, w.shape) for w in (few, many))
    names = "quantize_blockwise", "dequantize_blockwise"
    _expect_fast(answers, names, "blocks", ((few, book), (many, book)), tuple(back))


def _to_quantize(rng):
    """`{description: (weights, codebook, optional block size)}` for quantize_blockwise."""
    book = nf4().float()
    by_hand = torch.tensor([0.8, -2, 8, 5, -3]), FOUR, 2
    cases = {"([0.8, -2, 8, 5, -3], [-1, 0, 0.5, 1], block=2)": by_hand}
    for shape in SHAPES:
        w = randn(*shape, rng=rng) * (0.02 if shape == (70,) else 3)
        cases[f" on w of shape {shape}"] = _clear(w, book), book
    w = _clear(randn(5, 27, rng=rng), SIX, 32)
    cases[" on w of shape (5, 27) with 6 values in the codebook and block=32"] = w, SIX, 32
    tiny = "([5e-12, 5e-13, -5e-12, 5e-12], [-1, 0, 0.5, 1], block=2)"
    cases[tiny] = torch.tensor([5e-12, 5e-13, -5e-12, 5e-12]), FOUR, 2
    zeros = torch.cat([torch.zeros(64), torch.full((64,), 3.0)])
    w = _clear(0.01 * randn(64, 64, rng=rng).bfloat16(), book)
    cases[" on w in bfloat16 (use w.float())"] = w, book
    return cases | {" on 64 zeros and 64 threes": (zeros, book)}


def _to_restore(rng):
    """`{description: (codes, absmax, codebook, shape, optional block size)}`."""
    where = "([0, 3, 2, 3, 2], [2, 10, 4], [-1, 0, 0.5, 1], (5,), block=2)"
    by_hand = torch.tensor([0, 3, 2, 3, 2]), torch.tensor([2.0, 10, 4]), FOUR, (5,), 2
    cases = {where: by_hand}
    for shape, *block in (*((shape,) for shape in SHAPES), ((5, 27), 32)):
        n, used = torch.Size(shape).numel(), SIX if block else nf4().float()
        codes = torch.randint(len(used), (n,), generator=rng)
        peaks = 0.5 + 3 * torch.rand(-(-n // (32 if block else 64)), generator=rng)
        where = f" with shape {shape}" + " and block=32" * len(block)
        cases[where] = codes, peaks, used, shape, *block
    cases[" with an absmax of 0"] = torch.full((64,), 7), torch.zeros(1), nf4().float(), (64,)
    return {f"for dequantize_blockwise{where}": data for where, data in cases.items()}


def _scaled(w, block=64):
    """The numbers divided by their block's absmax, in fp64, and the absmax of each block."""
    parts = w.flatten().float().split(block)
    peaks = torch.stack([part.abs().max() for part in parts])
    each = peaks.repeat_interleave(block)[: w.numel()].double()
    return w.flatten().double() / each.where(each > 0, 1), peaks


def _clear(w, book, block=64):
    """`w` with zeros for numbers that are about equally near to two values of the codebook."""
    first, second = (_scaled(w, block)[0][:, None] - book).abs().topk(2, largest=False).values.T
    return w.masked_fill((second - first < 2e-4).view(w.shape), 0)


def _nearest(w, book, block=64):
    scaled, peaks = _scaled(w, block)
    return (scaled[:, None] - book).abs().argmin(1), peaks


def _codes(w, book, *block):
    codes, peaks = _nearest(w, book, *block)
    facts = {"the return value": "a tuple of 2"} | _forms(absmax=peaks, codes=codes) | AVOIDED
    if w.flatten()[:64].any():
        return facts
    return facts | {"codes": codes[64:], "the absmax of the zeros": "0"}


def _weights(codes, absmax, book, shape, block=64):
    block_of = torch.arange(len(codes)) // block
    return _result((book[codes.long()] * absmax[block_of]).view(shape))


def _back(w, book, *block):
    return {"the result": _weights(*_nearest(w, book, *block), book, w.shape, *block)["the result"]}


@exercise("4.4", points=2)
def packs(pack_nibbles, unpack_nibbles):
    """two codes per byte, as bitsandbytes stores them, also for odd lengths; unpacks them again"""
    rng, answers = generator(), (pack_nibbles, unpack_nibbles)
    every = torch.arange(256, dtype=torch.uint8)
    rows = [1, 2, 9, 4, 7, 15, 8, 3, 12, 5], [12], [3, 15, 9]
    cases = {f"for pack_nibbles of {row}": _bytes(row) for row in rows}
    for n in (192, 2 * draw(3, 20, rng) + 1):
        codes = torch.randint(1, 16, (n,), generator=rng)
        cases[f"for pack_nibbles of {n} codes"] = (codes.to(torch.uint8),)
    pairs = torch.cartesian_prod(every[:16], every[:16]).flatten()
    cases["for pack_nibbles of all pairs of codes"] = (pairs,)
    with part():
        expect_right(pack_nibbles, cases, _packed, probes.packed)
    cases = {f"for unpack_nibbles of {row}": _bytes(row) for row in ([18, 64, 151], [240])}
    cases["for unpack_nibbles of all 256 bytes"] = (every,)
    with part():
        expect_right(unpack_nibbles, cases, _unpacked, probes.unpacked)
    data = tuple((torch.ones(n, dtype=torch.uint8),) for n in (8, 264))
    _expect_fast(answers, ("pack_nibbles", "unpack_nibbles"), "codes", data, data)


def _bytes(values):
    return (torch.tensor(values, dtype=torch.uint8),)


def _packed(codes):
    row = [*codes.tolist(), 0]
    pairs = [16 * row[i] + row[i + 1] for i in range(0, len(codes), 2)]
    return {"the dtype": "uint8"} | _result(torch.tensor(pairs))


def _unpacked(packed):
    return _result(torch.tensor([int(digit, 16) for digit in bytes(packed.tolist()).hex()]))


@exercise("4.5", points=3)
def doubles(double_quantize, bits_per_param):
    """8-bit scales around their mean, for any group size and equal scales; 4.5 and 4.127 bits"""
    rng = generator()
    by_hand = torch.tensor([1.0, 2, 3, 10, 9]), 2
    cases = {"for double_quantize of [1, 2, 3, 10, 9] in groups of 2": by_hand}
    for n, outlier, *group in ((600, -1), (100, 0, 32), (256, -1)):
        absmax = 2.5 + randn(n, rng=rng).abs()
        absmax[n // 2] = 0.05  # further from the mean than those above it
        absmax[outlier] = 40.0
        where = f"for double_quantize of {n} scales" + "".join(f" in groups of {g}" for g in group)
        cases[where] = _off_halves(absmax, *group), *group
    cases["for double_quantize of 64 equal scales"] = (torch.full((64,), 3.0),)
    with part():
        expect_right(double_quantize, cases, _doubled, probes.doubled, tol=2e-4)
        tiny = 2e-9 + 127 * 4e-12 * torch.linspace(-1, 1, 64)  # (scale + 1e-12) gives up to 102
        cases = {"for double_quantize of 64 scales around 2e-9": (tiny,)}
        large = {"the largest q": "about 127"}
        expect_right(double_quantize, cases, lambda _: large, probes.largest)
    calls = [(64,), (64, True), (32,), (block := draw(70, 300, rng),), (block, True), ()]
    cases = {f"for bits_per_param({', '.join(map(str, call))})": call for call in calls}
    expect_right(bits_per_param, cases, _bits, tol=1e-6)


def _steps(absmax, group=256):
    """Distances from the mean in steps, in fp64; the step of each group and of each scale."""
    around = absmax.double() - absmax.double().mean()
    scale = torch.stack([part.abs().max() / 127 for part in around.split(group)])
    each = scale.repeat_interleave(group)[: len(absmax)]
    return around / each.where(each > 0, 1), scale, each


def _off_halves(absmax, group=256):
    """`absmax`, moved where rounding to 8 bits would depend on the last digit."""
    while True:
        steps, _, each = _steps(absmax, group)
        near = (steps - steps.floor() - 0.5).abs() < 0.02
        if not near.any():
            return absmax
        absmax = torch.where(near, absmax + 0.1 * each, absmax).float()


def _doubled(absmax, *group):
    steps, scale, _ = _steps(absmax, *group)
    facts = {"the return value": "a tuple of 3"} | AVOIDED | _forms(q=steps.round().int())
    facts |= _forms(scale=scale) if scale.any() else {}  # of equal scales q is 0
    return facts | {"the form of offset": "one number", "offset": absmax.mean().item()}


def _bits(block=64, double_quant=False):
    each = {"code": 4.0, "scale": (8 if double_quant else 32) / block}
    return sum(each.values()) + (32 / (256 * block) if double_quant else 0)


@exercise("4.6", points=4)
def qlora(QLoRALinear):
    """equals the dense layer and its gradients, trains A and B, does not keep W for backward"""
    rng, cases, book = generator(), {}, nf4().float()
    own = torch.cat([torch.rand(14, generator=rng) * 2 - 1, torch.tensor([-1.0, 1])]).sort().values
    for lead, d_out, d_in, r, alpha, used in (
        *(((4,), 13, 7, 3, 8.0, book), ((2, 3), 13, 7, 3, 8.0, own), ((), 9, 11, 2, 5.0, own)),
        *(((5,), 8, 16, 4, 10.0, book), ((2, 5), 6, 6, 4, 3.0, book)),
    ):
        layer = _layer(rng, d_out, d_in, r, alpha, used)
        x = randn(*lead, d_in, rng=rng).requires_grad_()
        where = f"with W of shape {(d_out, d_in)}, r = {r}, alpha = {alpha:g}, x of shape "
        cases[where + str(tuple(x.shape))] = [layer], x, randn(*lead, d_out, rng=rng)
    layers = [_layer(rng, *size, used) for size in ((12, 7, 3, 4.0), (5, 12, 2, 3.0))]
    x, dY = randn(3, 7, rng=rng), randn(3, 5, rng=rng)
    cases["with an x that needs no gradient"] = layers[:1], x, randn(3, 12, rng=rng)
    cases["with two layers in a row"] = layers, x.clone().requires_grad_(), dY
    expect_right(QLoRALinear, cases, _trained, probes.trained)
    data = *_layer(rng, 192, 160, 2, 6.0, book), randn(2, 160, rng=rng)
    nothing = {"the memory after forward": []}
    expect_right(QLoRALinear, {"": data}, lambda *_: nothing, probes.memory)


def _layer(rng, d_out, d_in, r, alpha, book):
    """The arguments that a QLoRALinear is built from."""
    n = d_out * d_in
    codes = torch.randint(16, (n,), generator=rng).to(torch.uint8)
    absmax = 0.5 + torch.rand(-(-n // 64), generator=rng)
    A, B = randn(r, d_in, rng=rng), randn(d_out, r, rng=rng)
    return codes, absmax, book, torch.Size((d_out, d_in)), A, B, alpha


def _trained(layers, x, dY):
    facts = {"the parameters that train": ["A", "B"], "the parameters": ["A", "B"]}
    facts |= {"A and B": "those that __init__ receives", "the tensors without register_buffer": []}
    facts["the tensors in buffers"] = "codes and scales"
    x, pairs, given = x.detach().clone().requires_grad_(), [], x
    with torch.enable_grad():
        y = x
        for codes, absmax, book, shape, A, B, alpha in layers:
            W = _weights(codes, absmax, book, shape)["the result"]
            pairs.append([M.detach().clone().requires_grad_() for M in (A, B)])
            y = y @ (W + alpha / len(A) * pairs[-1][1] @ pairs[-1][0]).T
        (y * dY).sum().backward()
    facts |= {"the output": y.detach()}
    facts |= {"the gradient of x": x.grad} if given.requires_grad else {}
    for i, pair in enumerate(pairs):
        of = f" in layer {i + 1}" if len(layers) > 1 else ""
        names = zip("AB", pair, strict=True)
        facts |= {f"the gradient of {name}{of}": M.grad for name, M in names}
    return facts


METHODS = {  # bytes of a number in the base; of one that trains: weight, gradient, two moments
    "full": (0, 4, 4, 8),
    "full_bf16": (0, 2, 2, 4),
    "lora": (2, 4, 4, 8),
    "qlora": ((4 + 8 / 64 + 32 / 64 / 256) / 8, 4, 4, 8),
}


@exercise("4.7", points=2)
def rule(training_bytes):
    """16 bytes per trained parameter, 8 if all is bf16; 2 or 0.516 per frozen base parameter"""
    rng, cases = generator(), {}
    for method in METHODS:
        n = draw(11, 99, rng) * 10**8
        trained = n if method.startswith("full") else draw(100, 900, rng) * 10**5
        cases[f'for training_bytes({n:_}, {trained:_}, "{method}")'] = n, trained, method
    expect_right(training_bytes, cases, _rule, probes.bytes_of)


def _rule(n_params, n_trainable, method):
    base, *each = METHODS[method]
    sizes = [float(size * n_trainable) for size in each]
    sizes[0] += base * n_params
    sizes = [size / 1e9 for size in sizes]
    names = "weights", "gradients", "optimizer"
    facts = {"the return value": "a dict", "its keys": list(names)}
    return facts | dict(zip((f"{name}, in GB," for name in names), sizes, strict=True))


quiz = quiz_of("4.8", points=3)
