"""Small edits of a function's source, the slips of one character or one line.

`edited(source, names)` yields `(text, source)`: the lines that an edit changes, as they are after
it, and the whole source with this edit in the functions or classes `names`.
"""

import ast
import copy
from collections.abc import Iterator

OPERATORS = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div, ast.Add),
    ast.Div: (ast.Mult, ast.FloorDiv),
    ast.FloorDiv: (ast.Div,),
    ast.Pow: (ast.Mult,),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitAnd: (ast.BitOr,),
}
COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ALIKE = ("sum mean", "max min", "amax amin", "floor ceil round", "argmax argmin", "and or")
ALIKE = {word: [w for w in group.split() if w != word] for group in ALIKE for word in group.split()}
DROPPED = (ast.Expr, ast.AugAssign, ast.Continue, ast.Break)


def edited(source: str, names: list[str]) -> Iterator[tuple[str, str]]:
    """Each edit of the functions and classes `names` of a source."""
    tree = ast.parse(source)
    for top in tree.body:
        if getattr(top, "name", None) in names:
            before = ast.unparse(top).splitlines()
            for at, new in _edits(top):
                twin = copy.deepcopy(tree)
                place = twin.body[tree.body.index(top)]
                after = ast.unparse(_put(place, at, new)).splitlines()
                lines = [line.strip() for line in after if line not in before]
                if after != before:
                    gone = f"without: {ast.unparse(_get(top, at)).splitlines()[0]}"
                    yield " | ".join(lines) or gone, ast.unparse(twin)


def _edits(top):
    """`(path to a node, what takes its place)`."""
    for path, node in _walk(top):
        for new in _instead(node):
            yield path, ast.fix_missing_locations(ast.copy_location(new, node))


def _walk(node, path=()):
    """`(path, node)` of each statement and expression below a node, without docstrings."""
    for field, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        for i, child in enumerate(children):
            text = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            text |= isinstance(child, ast.keyword) and child.arg == "strict"  # it only guards
            if isinstance(child, ast.AST) and not text and field not in ("annotation", "returns"):
                where = (*path, (field, i if isinstance(value, list) else None))
                yield where, child
                yield from _walk(child, where)


def _instead(node):
    """What a slip makes of a node."""
    if isinstance(node, ast.BinOp):
        yield from (
            ast.BinOp(node.left, op(), node.right) for op in OPERATORS.get(type(node.op), ())
        )
        yield from (node.left, node.right)
        if isinstance(node.op, ast.MatMult | ast.Sub | ast.Div):
            yield ast.BinOp(node.right, node.op, node.left)
        if isinstance(node.op, ast.RShift):
            yield ast.BinOp(ast.BinOp(node.left, ast.Sub(), ast.Constant(1)), node.op, node.right)
        if isinstance(node.op, ast.Div) and "alpha" in ast.unparse(node.left):
            yield ast.Call(ast.Name("max"), [ast.Constant(1.0), node], [])
    elif isinstance(node, ast.Compare):
        yield ast.Compare(node.left, [COMPARISONS[type(node.ops[0])]()], node.comparators[:1])
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args:
        yield node.func.value
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.BoolOp):
        yield from node.values
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
        if node.value:  # -1 in place of 0 is often the same: the only one is first and last
            yield ast.Constant(node.value - 1)
    elif isinstance(node, ast.Attribute) and node.attr in ("T", "mT"):
        yield node.value
    elif isinstance(node, ast.Attribute) and node.attr in ALIKE:
        yield from (ast.Attribute(node.value, name, node.ctx) for name in ALIKE[node.attr])
    elif isinstance(node, ast.Name) and node.id in ALIKE:
        yield from (ast.Name(name, node.ctx) for name in ALIKE[node.id])
    elif isinstance(node, ast.If):
        yield from (ast.If(ast.Constant(v), node.body, node.orelse) for v in (True, False))
    elif isinstance(node, DROPPED):
        yield ast.Pass()


def _get(node, path):
    for field, i in path:
        node = getattr(node, field) if i is None else getattr(node, field)[i]
    return node


def _put(node, path, new):
    """`node` itself, with `new` at a path."""
    parent, (field, i) = _get(node, path[:-1]), path[-1]
    if i is None:
        setattr(parent, field, new)
    else:
        getattr(parent, field)[i] = new
    return node
