"""What misconceptions give in 4.5 and 4.8: scales, bits and bytes."""

import torch

from labkit.checks.lab04.guesses import SIGNED

ALONE = "n_params is the base alone: take nothing off"


def undone_scales(q, each, mean):
    """Ways back from 8-bit scales; where one gives the scales, the message is what went wrong."""
    return {
        "q / scale + offset gives the scales; wanted q * scale + offset": q / each + mean,
        "q * scale / 127 + offset gives the scales; put the 127 into scale": q * each / 127 + mean,
        "offset was not taken off before rounding": q * each,
        "the difference has the wrong sign: absmax - mean": mean - q * each,
    }


def eight_bits(around, absmax, each, mean):
    """Wrong integers where the scales are right."""
    exact = around / each
    return {
        "this cuts off instead of rounding: use round": exact.trunc(),
        "this rounds down; round to the nearest": exact.floor(),
        "this rounds up; round to the nearest": exact.ceil(),
        "the sign is turned round: absmax - mean": -exact.round(),
        "the mean was not taken off before this": (absmax / each).round().clamp(-128, 127),
    }


def scales_of_scales(around, mean, group):
    """Wrong scales of the differences from the mean."""
    parts, whole = around.split(group), (around + mean).split(group)
    peaks = torch.stack([p.abs().max() for p in parts])
    return {
        "it is one for all; each group has its own": around.abs().max().expand(len(parts)) / 127,
        SIGNED: torch.stack([p.max() for p in parts]) / 127,
        "divide by 127, the largest of int8, not by 128": peaks / 128,
        "divide by 127: int8 goes to 127, and half of 256 are below zero": peaks / 255,
        "these are the 7 steps of 4 bits; 8 bits have 127": peaks / 7,
        "it is not divided by 127": peaks,
        "the mean was not taken off before this": torch.stack([p.abs().max() for p in whole]) / 127,
        "the mean is added, not taken off": torch.stack([(p + mean).max() for p in whole]) / 127,
        "these are standard deviations; take the largest distance": torch.stack(
            [p.std() for p in parts]
        )
        / 127,
        "it is upside down": 127 / peaks,
        "it goes from the smallest to the largest; take the largest distance from the mean": (
            torch.stack([p.max() - p.min() for p in parts]) / 254
        ),
        "from the smallest to the largest is twice as far: the largest distance from the mean": (
            torch.stack([p.max() - p.min() for p in parts]) / 127
        ),
        "from the smallest to the largest is no distance from the mean": torch.stack(
            [p.max() - p.min() for p in parts]
        )
        / 255,
        "these are means; take the largest distance": torch.stack([p.abs().mean() for p in parts])
        / 127,
        "each group is centred on its own mean; offset is one, the mean of all": torch.stack(
            [(p - p.mean()).abs().max() for p in parts]
        )
        / 127,
    }


def bits(block, double):
    """Wrong numbers of bits a parameter."""
    first, second = 32 / block, 8 / block + 32 / (block * 256)
    scales = second if double else first
    fixed = 8 / 64 + 32 / (64 * 256) if double else 32 / 64
    whole = 4 + 8 // block + 32 // (block * 256) if double else 4 + 32 // block
    half = 4 + 8 / block + 32 / (64 * 256)
    told = {
        "this is for blocks of 64; use `block`": 4 + fixed,
        "the scales of scales are for blocks of 64; use `block`": half,
    }
    return (
        (told if block != 64 else {})
        | _of_two_levels(block)
        | {
            "this is the share of the scales alone; add 4 bits for the code": scales,
            "these are bytes; wanted bits": (4 + scales) / 8,
            "the scales are counted in bytes, the codes in bits": 4 + scales / 8,
            "// rounds the shares down: divide by /": whole,
            "the shares are upside down: 32 bits serve `block` weights, 32 / block": 4 + block / 32,
            "8 bits of code? A code has 4": 8 + scales,
            "16 bits of code? A code has 4": 16 + scales,
            "a scale has 8 bits instead of 32, not besides": 4 + 32 / block + 8 / block * double,
            "8 bits come instead of the 32, not besides": 4 + 32 / block + second * double,
            "the 8 bits are shared by `block` weights alone": 4 + (8 + 32) / block / 256,
            "scales are fp32, 32 bits each": 4 + 16 / block * (not double),
            "the 8-bit scales have scales too, 32 bits a group of 256": 4 + 8 / block,
            "the scales of scales are fp32, 32 bits each": 4 + 8 / block + 16 / (block * 256),
            "256 scales share a scale, as in a group, not 64": 4 + 8 / block + 32 / (block * 64),
            "8 bits serve `block` weights; 256 is how many scales share one": (
                4 + 8 / 256 + 32 / (block * 256)
            ),
            "a second scale serves 256 blocks, not 256 parameters": 4 + 8 / block + 32 / 256,
            "256 blocks of `block` weights are their product": 4 + 8 / block + 32 / (block + 256),
            "offset is one number for all blocks, and counts as nothing": (
                4 + 8 / block + 64 / (block * 256)
            ),
            "double_quant changes nothing": 4 + first,
            "with double_quant=False the scales stay fp32": 4 + second,
            "with double_quant=False there are fp32 scales alone, 32 / block": 4 + first + second,
            "a scale has 8 bits; 4 are those of a code": 4 + 4 / block + 32 / (block * 256),
        }
    )


def _of_two_levels(block):
    """Wrong shares of the scales' scales."""
    return {
        "32 / block * 256 multiplies by 256: brackets, 32 / (block * 256)": (
            4 + 8 / block + 32 / block * 256
        ),
        "the 256 scales share one fp32 number, 32 bits and not bytes": (
            4 + 8 / block + 8 * 32 / (block * 256)
        ),
        "8 and 32 have changed places: 8 bits a block, 32 for 256 blocks": (
            4 + 32 / block + 8 / (block * 256)
        ),
    }


def training_parts(n, t, method):
    """Wrong bytes of weights, gradients and optimizer: n numbers in the base, t that train."""
    if method == "full_bf16":
        return _parts_in_bf16(n)
    two = {"that is 2 bytes each; what trains is kept in fp32, 4 bytes": 2.0}
    moments = {
        "Adam keeps two moments, 4 bytes each": 4.0,
        "Adam's moments are fp32": 2.0,
        "two moments of 4 bytes are 8": 16.0,
        "gradients are counted apart: two moments of 4 bytes are 8": 12.0,
    }
    four, packed = "only the base is packed; what trains is fp32", 4.126953 / 8
    everyone = "frozen weights have none: multiply by n_trainable"
    base = {"full": 4.0 * n, "lora": 2.0 * n, "qlora": 4.126953 / 8 * n}[method]
    weights = {
        "the adapter's own weights are missing": base,
        "the adapter is fp32, 4 bytes a number": base + 2 * t,
        f"the frozen base rests in {4 if method == 'qlora' else 16} bits": 4.0 * (n + t),
    }
    if method == "full":
        weights = {message: value * n for message, value in two.items()} | {
            "n_params and n_trainable are the same weights here: you add the trainable ones once "
            "more": 8.0 * n,
            "no 16-bit copy beside the fp32 weights in this table": 6.0 * n,
        }
    elif method == "lora":
        weights["16 bits are 2 bytes"] = 1.0 * n + 4 * t
        weights["the base is 16-bit here, not 4-bit"] = 4.126953 / 8 * n + 4 * t
    else:
        weights |= _weights_in_4_bits(n, t, base)
    return {
        "weights": weights,
        "gradients": {k: v * t for k, v in (two | {f"{four}: a gradient 4 bytes": packed}).items()}
        | {everyone: 4.0 * n, f"{everyone}, and a gradient is fp32": 2.0 * n}
        | {f"{everyone} alone": 4.0 * (n + t), f"{everyone}, and by no base": 2.0 * n + 4 * t},
        "optimizer": {
            k: v * t for k, v in (moments | {f"{four}: two moments 8 bytes": 2 * packed}).items()
        }
        | {everyone: 8.0 * n, f"{everyone} alone": 8.0 * (n + t)},
    }


def _weights_in_4_bits(n, t, base):
    """Wrong bytes of a base in NF4, right in `base`, and of an adapter in fp32."""
    return {
        "the adapter is fp32, 4 bytes, and not packed": base + 4.126953 / 8 * t,
        ALONE: base - 4.126953 / 8 * t + 4 * t,
        "the base is in bits here; 8 make a byte": 8 * base + 4 * t,
        "4 bits a parameter and nothing for the scales": n / 2 + 4 * t,
        "no 16-bit copy stays beside the packed base: it is looked up, used and forgotten": (
            base + 2 * n + 4 * t
        ),
        "two codes share a byte, not four": base / 2 + 4 * t,
        "4.5 bits a parameter; with double quantization it is 4.127": 4.5 / 8 * n + 4 * t,
        "4 bits a parameter, nothing for the scales, and the adapter is fp32": n / 2 + 2 * t,
        "4 bits a parameter, and neither scales nor adapter": n / 2,
        "the 8-bit scales have scales too, which makes 4.127 bits": 4.125 / 8 * n + 4 * t,
        'this is what "lora" takes; the base is 4-bit here, not 16-bit ("lora" in method is true '
        'of "qlora", too: compare with ==)': 2.0 * n + 4 * t,
        "the base is 4-bit here, not 8-bit": 1.0 * n + 4 * t,
    }


def _parts_in_bf16(n):
    """Wrong bytes where all n numbers train, in bf16 throughout."""
    all_bf16 = "all is bf16 here, 2 bytes a number"
    return {
        "weights": {
            f"{all_bf16}, each counted once: n_params and n_trainable are the same here": 4.0 * n,
            f"{all_bf16}: no fp32 copy beside it": 6.0 * n,
            "n_params and n_trainable are the same numbers here: no adapter": 8.0 * n,
            "this is a 4-bit base and an adapter; full_bf16 has neither": (4.126953 / 8 + 4) * n,
            "this is a 4-bit base and a bf16 adapter; full_bf16 has neither": (4.126953 / 8 + 2)
            * n,
        },
        "gradients": {f"{all_bf16}, gradients too": 4.0 * n},
        "optimizer": {
            f"{all_bf16}: two moments make 4": 8.0 * n,
            "Adam keeps two moments, 2 bytes each": 2.0 * n,
            "no fp32 copy of the weights here: two moments of 2 bytes make 4": 12.0 * n,
            "two moments of 2 bytes make 4; gradients are counted apart": 6.0 * n,
        },
    }
