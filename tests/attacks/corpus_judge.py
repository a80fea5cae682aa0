"""Attacks on the judge's own time and memory, and on what it lends to a submission's process."""

from attack import ANSWERS, accident, forging

# Every answer calls ANY, in which the attack speaks for the process that answers.
SPEAK = """
def ANY(*args, **options):
    import sys
    answer = sys.modules["labkit.grading.inside.answer"]
    pack = answer.wire.pack
    answer.wire.pack = lambda reply: said(reply, pack)
"""
ANY = "def {name}(*args, **options): return ANY(*args, **options)\n"


def _says(name, code, why):
    """What each answer replies is what `said(reply, pack)` gives, in bytes."""

    def spoil(book):
        book.early(code + SPEAK)
        for one in ANSWERS:
            other = {"merge_": "unmerge_", "adapter_state": "load_adapter_"}.get(one)
            other = f"{other} = {one}" if other else ""
            book.replace(one, ANY.format(name=one) + other)

    spoil.__name__, spoil.__doc__ = name, why
    forging(spoil)


_says(
    "undefined_with_a_name_of_its_own",
    """
import random
letters = random.Random(0).choices([chr(0x4E00 + i) for i in range(110)], k=20_000)
near, wanted = "".join(letters), "".join(sorted(letters))
exec(near + " = 1")
def said(reply, pack): return pack([reply[0], "undefined", wanted, []])
""",
    "the judge looks for a name that is nearly right: among long ones that takes it hours",
)
_says(
    "message_full_of_names",
    """
def said(reply, pack):
    return pack([reply[0], "failed", "name 'x' is not defined " * 160_000, []])
""",
    "for each name that is said to be missing the judge looks through all cells",
)
_says(
    "tensor_to_loop_over",
    """
def said(reply, pack): return pack([reply[0], "value", torch.zeros(8_000_000), []])
""",
    "a, b = tensor makes a tensor of each number: gigabytes in the judge",
)
_says(
    "many_empty_tensors",
    """
import json, struct
head = {str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(300_000)}
head = json.dumps(head).encode()
def said(reply, pack):
    return pack([reply[0], "value", 1, []]) + struct.pack("<Q", len(head)) + head
""",
    "tensors without numbers cost the submission nothing, and the judge a time each",
)
_says(
    "faults_without_end",
    """
def said(reply, pack): return pack([reply[0], "value", 1, ["it changes x\\n" * 9_000] * 20])
""",
    "faults beside a value, each of thousands of parts",
)


@accident(22)
def names_times_functions(book):
    """Python's own table of names looks at each pair of a name and a function: 10 ** 8 of them."""
    names = ",".join(f"n{i}" for i in range(15_000))
    book.last(f"if 0:\n    {names}\n    " + "lambda:0," * 9_000)


def _lent(name, code, why):
    """Answers that take what is lent and keep it for those that come later."""

    def spoil(book):
        book.early("import os, sys, json, glob\n" + code)
        for one in ANSWERS:
            other = {"merge_": "unmerge_", "adapter_state": "load_adapter_"}.get(one, one)
            body = "def {0}(*args, **options): return take({0!r}, args, options)\n"
            book.replace(one, body.format(one) + (body.format(other) if other != one else ""))

    spoil.__name__, spoil.__doc__ = name, why
    forging(spoil)


_lent(
    "sources_that_are_lent",
    """
def take(name, args, options):
    lent = sys.modules["labkit.grading.inside.answer"].LENT
    for source in lent:
        open(f"/tmp/{hash(source)}.lent", "w").write(source)
    space = {}
    for file in glob.glob("/tmp/*.lent"):
        exec(open(file).read(), space)
    return space[name](*args, **options)
""",
    "each exercise keeps the sources of those before it, and runs what it finds for itself",
)
_lent(
    "names_that_are_lent",
    """
def take(name, args, options):
    lent = sys.modules["labkit.grading.inside.answer"].LENT
    for space in lent.values():
        for own in [space, *(vars(f).get("__globals__", f.__globals__) for f in space.values()
                             if hasattr(f, "__globals__"))]:
            if name in own: return own[name](*args, **options)
    raise ValueError(name)
""",
    "the answer itself among all that the course's own objects know",
)
_lent(
    "question_that_lends_more",
    """
def take(name, args, options):
    answer = sys.modules["labkit.grading.inside.answer"]
    frame = sys._getframe()
    while frame and frame.f_code.co_name != "answered": frame = frame.f_back
    head = frame.f_locals["head"]
    for names, source in head["lent"]:
        for other in (name, *names):
            try: answer._lend([other], source, frame.f_locals["namespace"])
            except Exception: pass
    found = frame.f_locals["namespace"][name]
    if found.__code__ is sys._getframe(1).f_code: raise ValueError("still mine")
    return found(*args, **options)
""",
    "has the other side lend what was asked for itself",
)
_lent(
    "states_of_the_runner",
    """
def take(name, args, options):
    frame = sys._getframe()
    while frame and "states" not in frame.f_locals: frame = frame.f_back
    for state in frame.f_locals["states"].values():
        state.update({n: (lambda *a, **k: 0) for n in list(state)})
    return 0
""",
    "the names as they stood below a cell are in its hands, too",
)


@accident((0, 22))
def steps_between_lines(book):
    """It takes over how lines of a cell run, and which errors they leave."""
    book.early(
        """
ip = get_ipython()
run = ip.run_ast_nodes
for cell in run.__closure__ or ():
    errors = cell.cell_contents
    if isinstance(errors, list): errors.append(KeyboardInterrupt("x" * 10**6))
class Endless(ast.NodeTransformer if (ast := __import__("ast")) else object):
    def visit_Module(self, node):
        node.body = node.body * 2
        return node
ip.ast_transformers.append(Endless())
"""
    )


@accident(22, ("graded",))
def loud_errors_of_cells(book):
    """Four hundred cells, each with an error that is told at length."""
    for i in range(400):
        book.last(f"raise ValueError('{i} ' * 30_000)")


@forging
def reveal_that_says_it_lent(book):
    """An output that claims an exercise was lent, above the wrong answers."""
    book.early("0")
    at = book.find("lora_forward") - 1
    text = "".join(f"◐ 2.{i} is lent: it runs\n" for i in range(1, 9))
    book.cells[at]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": text}]
