"""Checks of lab 7. The reference is gguf, transformers' loader, PEFT, or what was planted."""

from labkit.checks.lab07 import audited, eights, parted, routed, rows, together
from labkit.checks.quiz import judge
from labkit.contract import NotWritten, exercise, generator, part


@exercise("7.1", points=3)
def audits(audit):
    """counts every planted fault, and none in clean rows"""
    audited.expect_audit(audit, generator())


@exercise("7.2", points=3)
def parts(split):
    """no prompt is on both sides; the same rows whatever their order; the share is kept"""
    parted.expect_split(split, generator())


@exercise("7.3", points=2)
def orders(rotary_rows):
    """transformers' GGUF loader turns it back, of weights and of LoRA's B"""
    rows.expect_rows(rotary_rows, generator())


@exercise("7.4", points=3)
def writes_q8(q8_0):
    """the bytes of gguf.quants"""
    eights.expect_q8(q8_0, generator())


@exercise("7.5", points=4)
def serves(swap_cost, route):
    """a swap makes the adapter active and costs its bytes; a mixed batch answers as one by one"""
    open_ones, (seed, prompts) = [], routed.asked(generator())
    for judged in (
        lambda: routed.expect_swaps(swap_cost, seed),
        lambda: routed.expect_routed(route, seed, prompts),
    ):
        with part():
            try:
                judged()
            except NotWritten as stub:
                open_ones.append(stub)
    if open_ones:
        raise open_ones[0]


@exercise("7.6", points=3)
def batches(batched_lora):
    """what each row's adapter gives alone, without a loop over rows or a dense update"""
    together.expect_together(batched_lora, generator())


@exercise("7.7", points=4)
def quiz(quiz):
    """four questions"""
    return judge(quiz, "07")
