"""Answers to lab 6's `arrives`: right ones written differently, wrong ones and their words."""

import torch
import torch.nn.functional as F


def moved(W, dW, store):
    return store(W.float() + dW.float()).float() - store(W.float()).float()


def arrives(W, dW, store):
    return ((moved(W, dW, store) * dW.float()).sum() / dW.float().square().sum()).item()


def by_dot(W, dW, store):
    """In double precision, which a store takes as well."""
    d = dW.double().flatten()
    change = (store(W.double() + dW.double()).double() - store(W.double()).double()).flatten()
    return float(torch.dot(change, d) / d.norm() ** 2)


def by_einsum(W, dW, store):
    along = torch.einsum("ij,ij->", moved(W, dW, store), dW.float())
    return (along / torch.linalg.norm(dW.float()).pow(2)).item()


def by_trace(W, dW, store):
    d = dW.float()
    return (torch.trace(moved(W, dW, store).T @ d) / torch.trace(d.T @ d)).item()


def by_cosine(W, dW, store):
    change, d = moved(W, dW, store).flatten(), dW.float().flatten()
    return (F.cosine_similarity(change, d, dim=0) * change.norm() / d.norm()).item()


def by_two_products(W, dW, store):
    d = dW.double()
    after, before = (store(x).double() for x in (W.float() + dW.float(), W.float()))
    return (((after * d).sum() - (before * d).sum()) / (d * d).sum()).item()


def by_numpy(W, dW, store):
    d = dW.float().numpy().ravel()
    return float(moved(W, dW, store).numpy().ravel() @ d / (d @ d))


def by_rows(W, dW, store):
    """Row by row, as long as blocks do not cross rows."""
    along = sum(
        (moved(w[None], d[None], store)[0] @ d.float()).item() for w, d in zip(W, dW, strict=True)
    )
    return along / dW.float().square().sum().item()


RIGHT = [arrives, by_dot, by_einsum, by_trace, by_cosine, by_two_products, by_numpy, by_rows]


def share(change, over=lambda W, dW, change: dW.square().sum()):
    """An answer from `change(W, dW, store)` in fp32 and what its product with dW is divided by."""

    def wrong(W, dW, store):
        W, dW = W.float(), dW.float()
        this = change(W, dW, lambda x: store(x).float())
        return ((this * dW).sum() / over(W, dW, this)).item()

    return wrong


def number(f):
    """An answer f(moved, dW) in fp32."""
    return lambda W, dW, store: float(f(moved(W, dW, store), dW.float()))


def all_squared_in_16_bits(W, dW, store):
    return ((moved(W, dW, store) * dW.float()).sum() / (dW**2).sum()).item()


def in_place(W, dW, store):
    before = store(W.float()).float()
    change = store(W.add_(dW)).float() - before
    return ((change * dW.float()).sum() / dW.float().square().sum()).item()


def in_16_bits(W, dW, store):
    return (((store(W + dW) - store(W)) * dW).sum() / (dW * dW).sum()).item()


def added_in_16_bits(W, dW, store):
    change = store((W + dW).float()).float() - store(W.float()).float()
    return ((change * dW.float()).sum() / dW.float().square().sum()).item()


def converted_after_adding(W, dW, store):
    change, d = store(W + dW).float() - store(W).float(), dW.float()
    return (change * d).sum().item() / d.pow(2).sum().item()


def multiplied_in_16_bits(W, dW, store):
    along = (moved(W, dW, store).to(dW.dtype) * dW).sum()
    return (along / dW.float().square().sum()).item()


def squared_in_16_bits(W, dW, store):
    change = moved(W, dW, store).to(dW.dtype)
    return ((change * dW).sum() / (dW * dW).sum()).item()


def summed_in_16_bits(W, dW, store):
    change, d = moved(W, dW, store), dW.float()
    return ((change.bfloat16() * d.bfloat16()).sum().float() / d.square().sum()).item()


def along_what_is_stored(W, dW, store):
    d = store(dW.float()).float()
    return ((moved(W, dW, store) * d).sum() / d.square().sum()).item()


def divided_by_what_moved(W, dW, store):
    """Right where anything moves."""
    change, d = moved(W, dW, store), dW.float()
    return (change.square().sum() / d.square().sum() * _inverse(change, d)).item()


def _inverse(change, d):
    return (change * d).sum() / change.square().sum()


def short_length(W, dW, store):
    """The length of dW is taken in its own 16 bits."""
    change = store(W.float() + dW.float()).float() - store(W.float()).float()
    return ((change * dW.float()).sum() / dW.norm().square()).item()


WRONG = [
    (short_length, "the length |dW| is taken in 16 bits"),
    (share(lambda W, dW, store: store(W + dW) - W), "store(W) is to be taken away, not W"),
    (share(lambda W, dW, store: store(W + dW)), "store(W) is not taken away"),
    (share(lambda W, dW, store: store(dW)), "what is stored is W + dW"),
    (share(lambda W, dW, store: store(W) + dW - store(W)), "W + dW is stored"),
    (share(lambda W, dW, store: store(W) - store(W + dW)), "the sign is turned round"),
    (share(lambda W, dW, store: store(W) - store(W - dW)), "dW is taken away, not added"),
    (share(lambda W, dW, store: store(W + dW) - W - dW), "the rounding error of the sum"),
    (
        share(lambda W, dW, store: store(store(W) + dW) - store(W)),
        "dW is added to store(W); what is stored is W + dW",
    ),
    (share(moved, lambda W, dW, m: dW.norm()), "divided by |dW|, wanted its square"),
    (share(moved, lambda W, dW, m: dW.norm() * m.norm()), "the cosine"),
    (share(moved, lambda W, dW, m: m.square().sum()), "what arrived, squared"),
    (divided_by_what_moved, "don't divide by what moved"),
    (share(moved, lambda W, dW, m: W.square().sum()), "divided by |W| squared"),
    (share(moved, lambda W, dW, m: 1.0), "is not divided by |dW| squared"),
    (share(moved, lambda W, dW, m: dW.numel()), "a mean that is not divided"),
    (share(moved, lambda W, dW, m: torch.linalg.matrix_norm(dW, 2) ** 2), "largest singular value"),
    (share(moved, lambda W, dW, m: dW.square().sum() + 1e-3), "1 arrives of 0.6"),
    (number(lambda m, d: m.norm() / d.norm()), "a ratio of lengths"),
    (number(lambda m, d: (m.norm() / d.norm()) ** 2), "a ratio of squared lengths"),
    (number(lambda m, d: (m != 0).float().mean()), "the share of weights that move"),
    (number(lambda m, d: (m - d).norm() / d.norm()), "the relative error"),
    (number(lambda m, d: 1 - (m - d).norm() / d.norm()), "1 less the relative error"),
    (number(lambda m, d: 1 - (m * d).sum() / d.square().sum()), "this is what is lost"),
    (number(lambda m, d: (m / d).mean()), "the mean of single ratios"),
    (number(lambda m, d: (m / d).median()), "the median of single ratios"),
    (number(lambda m, d: m.abs().sum() / d.abs().sum()), "sums of sizes"),
    (number(lambda m, d: m.sum() / d.sum()), "where plus and minus cancel"),
    (number(lambda m, d: (m * d).abs().sum() / d.square().sum()), "the signs are lost"),
    (number(lambda m, d: (m @ d.T).sum() / d.square().sum()), "a matrix product"),
    (number(lambda m, d: ((m * d).sum(1) / d.square().sum(1)).mean()), "the rows' shares"),
    (number(lambda m, d: ((m * d).sum() / d.square().sum()).clamp(0, 1)), "more than 1 can arrive"),
    (number(lambda m, d: 100 * (m * d).sum() / d.square().sum()), ("percent", "1 arrives of 0.6")),
    (number(lambda m, d: round(((m * d).sum() / d.square().sum()).item(), 2)), "rounded"),
    (number(lambda m, d: torch.dot(m, d)), "flatten both"),
    (lambda W, dW, store: torch.tensor(arrives(W, dW, store)), "use .item()"),
    (lambda W, dW, store: None, "is `return` missing?"),
    (lambda W, dW, store: arrives(W, dW, lambda x: store(x, dW)), "store takes one matrix"),
    (lambda W, dW, store: abs(arrives(W, dW, store)), "the sign is lost"),
    (lambda W, dW, store: max(0.0, arrives(W, dW, store)), "held at 0"),
    (number(lambda m, d: m.sum() / d.square().sum()), "is not multiplied by dW"),
    (share(lambda W, dW, store: store(store(W + dW) - store(W))), "stored once more"),
    (share(lambda W, dW, store: W + dW - store(W)), "W + dW is not stored"),
    (share(lambda W, dW, store: (store(W + dW) - store(W - dW)) / 2), "half of what lies between"),
    (share(moved, lambda W, dW, m: dW.norm() * W.norm()), "divided by |dW| |W|"),
    (number(lambda m, d: m.abs().max() / d.abs().max()), "compares the largest numbers alone"),
    (along_what_is_stored, "those of store(dW)"),
    (summed_in_16_bits, "right but for rounding: computed in 16 bits"),
    (in_place, "changes its input W in place"),
    (in_16_bits, "W + dW is added and the squares |dW|² are taken and summed in 16 bits"),
    (added_in_16_bits, "W + dW is added in 16 bits"),
    (converted_after_adding, "W + dW is added in 16 bits"),
    (squared_in_16_bits, "W.float() and dW.float() first"),
    (multiplied_in_16_bits, "what moved is multiplied by dW in 16 bits"),
    (all_squared_in_16_bits, "the squares |dW|² are taken in 16 bits"),
]
