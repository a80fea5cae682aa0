"""What misconceptions give for the parameters of A and B, for lab 3."""

import itertools


def counted(shapes: dict, r: int) -> dict:
    """Wrong counts at rank r for matrices `{name: (d_out, d_in)}`, by message."""
    pairs = list(shapes.values())
    d_out, d_in = (sum(pair[k] for pair in pairs) for k in (0, 1))
    return {
        "this counts A only; B has d_out * r more": r * d_in,
        "this counts B only; A has r * d_in more": r * d_out,
        "d_out is used twice, as if matrices were square": 2 * r * d_out,
        "d_in is used twice, as if matrices were square": 2 * r * d_in,
        "this counts the first matrix alone: sum over shapes (is `return` inside the loop?)": (
            r * sum(pairs[0])
        ),
        "r times both sides: brackets, r * (d_out + d_in)": r * d_out + d_in,
        "r times both sides: brackets, (d_out + d_in) * r": d_out + r * d_in,
        "the sizes of A and B are multiplied: add them": r * r * sum(o * i for o, i in pairs),
        "this counts the last matrix alone: sum over shapes (is it `=` where `+=` is meant?)": (
            r * sum(pairs[-1])
        ),
        "r singular values a matrix are counted too, or a bias of A; A and B hold all": r
        * (d_out + d_in + len(pairs)),
        "a bias of A and one of B are counted too; they have none": (
            r * (d_out + d_in + len(pairs)) + d_out
        ),
    }


def shared(shapes: dict, r: int) -> dict:
    """Counts in which matrices of a layer that read the same input have one A together."""
    made, d_out, qkv = {}, sum(o for o, _ in shapes.values()), ("q_proj", "k_proj", "v_proj")
    for who, readers in (
        ("q, k and v", qkv),
        ("q, k and v, or gate and up,", (*qkv, "gate_proj", "up_proj")),
    ):
        wide = {}
        for name, (_, d_in) in shapes.items():
            layer, _, last = name.rpartition(".")
            wide[layer, last in readers or last] = d_in
        told = f"each matrix has an A of its own, also where {who} read the same input"
        made[told] = r * (sum(wide.values()) + d_out)
    return made


def left_out(shapes: dict, r: int) -> dict:
    """Counts without some of a few matrices, as where their names decide."""
    total, most = r * sum(map(sum, shapes.values())), len(shapes) if len(shapes) < 8 else 0
    return {
        f"{', '.join(some)} left out: all that shapes names is adapted, whatever its name": total
        - r * sum(sum(shapes[name]) for name in some)
        for size in range(1, most)
        for some in itertools.combinations(shapes, size)
    }
