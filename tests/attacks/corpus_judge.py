"""Attacks on the judge's own time and memory, and on what it lends to a submission's process."""

from attack import ALL, ANSWERS, accident, cells, forging, named, parts

# each answer has the process reply, in bytes, what `said` makes of the reply
SAYS = r"""
# %% undefined_with_a_name_of_its_own: the judge seeks what is nearly that name, for hours
import random
letters = random.Random(0).choices([chr(0x4E00 + i) for i in range(110)], k=20_000)
near, wanted = "".join(letters), "".join(sorted(letters))
exec(near + " = 1")
def said(reply, pack): return pack([reply[0], "undefined", wanted, []])

# %% message_full_of_names: for each that is said to be missing the judge looks through all cells
def said(reply, pack):
    return pack([reply[0], "failed", "name 'x' is not defined " * 160_000, []])

# %% tensor_to_loop_over: a, b = tensor makes a tensor of each number: gigabytes in the judge
def said(reply, pack): return pack([reply[0], "value", torch.zeros(8_000_000), []])

# %% many_empty_tensors: they cost the submission nothing, and the judge a time each
import json, struct
head = {str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(300_000)}
head = json.dumps(head).encode()
def said(reply, pack):
    return pack([reply[0], "value", 1, []]) + struct.pack("<Q", len(head)) + head

# %% faults_without_end: faults beside a value, each of thousands of parts
def said(reply, pack): return pack([reply[0], "value", 1, ["it changes x\n" * 9_000] * 20])
"""
SPEAK = """
def any_answer(*args, **options):
    import sys
    answer = sys.modules["labkit.grading.inside.answer"]
    pack = answer.wire.pack
    answer.wire.pack = lambda reply: said(reply, pack)
"""
# each answer keeps what is lent, or looks for it, for exercises that come later
TAKES = """
# %% sources_that_are_lent: each exercise keeps the sources of those before it, and runs them
def take(name, args, options):
    lent = sys.modules["labkit.grading.inside.answer"].LENT
    for source in lent:
        open(f"/tmp/{hash(source)}.lent", "w").write(source)
    space = {}
    for file in glob.glob("/tmp/*.lent"):
        exec(open(file).read(), space)
    return space[name](*args, **options)

# %% names_that_are_lent: the answer itself among all that the course's own objects know
def take(name, args, options):
    lent = sys.modules["labkit.grading.inside.answer"].LENT
    for space in lent.values():
        for own in [space, *(vars(f).get("__globals__", f.__globals__) for f in space.values()
                             if hasattr(f, "__globals__"))]:
            if name in own: return own[name](*args, **options)
    raise ValueError(name)

# %% question_that_lends_more: has the other side lend what was asked for itself
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

# %% states_of_the_runner: the names as they stood below a cell are in its hands, too
def take(name, args, options):
    frame = sys._getframe()
    while frame and "states" not in frame.f_locals: frame = frame.f_back
    for state in frame.f_locals["states"].values():
        state.update({n: (lambda *a, **k: 0) for n in list(state)})
    return 0
"""
OTHERS = {"merge_": "unmerge_", "adapter_state": "load_adapter_"}


def everywhere(code, answer):
    """All answers are `answer`, in which {0} is the name."""

    def spoil(book):
        book.early(code)
        for name in ANSWERS:
            both = [name, OTHERS[name]] if name in OTHERS else [name]
            book.replace(name, "\n".join(map(answer.format, both)))

    return spoil


for name, why, code in parts(SAYS):
    named(name, why, everywhere(code + SPEAK, "{0} = any_answer"), forging)
for name, why, code in parts(TAKES):
    answer = "def {0}(*args, **options): return take({0!r}, args, options)"
    named(name, why, everywhere("import glob, sys\n" + code, answer), forging)

cells(
    """
# %% steps_between_lines: it takes over how lines of a cell run, and which errors they leave
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
""",
    accident((0, ALL)),
)


@accident((0, ALL), ("graded", "timeout", "unreadable"))
def cells_that_parse_slowly(book):
    """Twenty cells of a megabyte, each half a million comparisons: the judge itself parses them."""
    for _ in range(20):
        book.last("x = 1\nif 0: x" + " <x" * 340_000)


@accident()
def names_times_functions(book):
    """Python's own table of names looks at each pair of a name and a function: 10 ** 8 of them."""
    names = ",".join(f"n{i}" for i in range(15_000))
    book.last(f"if 0:\n    {names}\n    " + "lambda:0," * 9_000)


@accident()
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
