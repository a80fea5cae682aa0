"""What the check of `swap_cost` and `route` asks; the references are in `served`."""

import functools

from labkit.checks.compare import draw, expect_numbers
from labkit.checks.lab07 import served
from labkit.contract import CheckFailed, expect, observe, part
from labkit.labs.lab07 import fleet
from labkit.probes import tiny

QUICKEST = 5e-6  # seconds; set_adapter takes 4e-4 on the tiny model, two looks at a clock 2e-7
NAMES = ("home", "tickets", "homely", "sweet-home", "home", "homely")
LENGTHS = (5, 14, 3, 600, 7, 2)


def asked(rng):
    """A seed and prompts, with a first token and some with the end of a turn, as templates write.

    Some answers of the model of that seed end by themselves and others not: the limit has to show.
    Some have several lines, and no prompt has.
    """
    words = [tiny.words(rng, n).replace(fleet.ENDS_A_LINE, "hall").split() for n in LENGTHS]
    turns = ([*w[:2], "<end>", *w[2:]] if len(w) > 4 else w for w in words)
    prompts = tuple(" ".join(["<start>", *turn]) for turn in turns)
    for _ in range(20):
        seed = draw(1, 10**6 - 1, rng)
        alone = served.answered_alone(seed, prompts, NAMES)
        sizes = [len(text.split()) for text in alone]
        together = served.answered_together(seed, prompts, NAMES, "left", "tokenizer's")
        if not any("\n" in text.strip() for text in alone):
            continue
        if 0 < min(sizes) < max(sizes) == fleet.NEW_TOKENS and together == alone:
            break
    return seed, prompts


def expect_swaps(swap_cost, seed):
    """Each adapter is active after `swap_cost`, which tells its bytes and its seconds."""
    runs = []
    for name in fleet.ADAPTERS:
        call = f'swap_cost(model, "{name}")'
        got = observe(fleet.swapped, swap_cost, seed, name)
        shaped = isinstance(got["cost"], dict) and {"seconds", "bytes"} <= set(got["cost"])
        expect(shaped, f'{call} must return {{"seconds": ..., "bytes": ...}}')
        runs.append((name, call, got))
    with part():
        for name, call, got in runs:
            _expect_active(name, f"after {call}", got)
    with part():
        sizes, cases = served.adapter_bytes(seed), []
        for name, call, got in runs:
            known = _byte_guesses(name, sizes, got["before"])
            cases.append((f'{call}["bytes"]', got["cost"]["bytes"], sizes["bytes"][name], known))
        expect_numbers(cases)
    with part():
        for name, call, got in runs:
            least = QUICKEST if got["layers"] == [name] else 0  # else there is nothing to time
            _expect_seconds(got["cost"]["seconds"], least, got["took"], f'{call}["seconds"]')
    for _, call, got in runs:
        changed = ", ".join(got["changed"])
        expect(not changed, f"{call} changes more than the adapter: {changed}")


def _byte_guesses(name, sizes, before):
    own, numbers = sizes["bytes"], sizes["numbers"]
    dots = "look for .home. with both its dots"
    guesses = {
        "this counts numbers, not bytes": numbers[name],
        "this takes 4 bytes a number; ask each tensor: nbytes": 4 * numbers[name],
        "this takes 2 bytes a number; ask each tensor: nbytes": 2 * numbers[name],
        "these are the bytes of all adapters": sum(own.values()),
        "these are the numbers of all adapters": sum(numbers.values()),
        "these are the bytes of the whole model": sizes["model"],
        "these are the bytes of the base model; it stays where it is": sizes["base"],
        "these are the bytes of A alone": sizes["half"][name],
        "these are the bytes of B alone": own[name] - sizes["half"][name],
        "these are one layer's bytes; add up all layers": sizes["first"][name],
        "the layers' own weights are counted too; the adapter's alone": own[name] + sizes["beside"],
        "these are the bytes of the adapter that was active before": own[before],
        "this is in kB; bytes are wanted": own[name] / 1000,
        "this is in KiB; bytes are wanted": own[name] / 1024,
        "this is in MB; bytes are wanted": own[name] / 1e6,
        "this counts bits; bytes are wanted": 8 * own[name],
        "this is in whole kB; bytes are wanted": own[name] // 1000,
        "this is in whole KiB; bytes are wanted": own[name] // 1024,
        "this is the size of the saved file, which has names in it, too": sizes["file"][name],
        "that is the size of a saved file, which has names in it, too": sizes["bare file"][name],
        "this is one number's bytes for each tensor: nbytes has all of them": sizes["one"][name],
        "this counts the tensors, not their bytes": sizes["tensors"],
        "these are twice the bytes: each tensor counts once": 2 * own[name],
        "that is the size of Python's objects, not of the numbers behind them: nbytes": sizes[
            "objects"
        ][name],
        "nothing is counted: no parameter has such a name": 0,
    }
    for size, of in (("", own), (", and these are numbers, not bytes", numbers)):
        for how, alike in {
            f"adapters whose names begin so count too{size}: {dots}": str.startswith,
            f"adapters whose names end so count too{size}: {dots}": str.endswith,
            f"adapters whose names contain this one count too{size}: {dots}": str.__contains__,
        }.items():
            guesses[how] = sum(of[other] for other in own if alike(other, name))
    return guesses


def _expect_active(name, after, got):
    """The layers have the adapter, and both models around them name it."""
    layers = ", ".join(got["layers"]) or "none, since the layers are switched off"
    hint = "switch with model.set_adapter(adapter_name)"
    hint += ", and leave it so" * got["switched"]
    named = name in (got["named"], *got["active"])
    if named and name not in got["layers"] and not got["switched"]:
        told = f"{after} model names {name} as its adapter, but the layers still have {layers}"
        raise CheckFailed(f"{told}: setting an attribute reaches no layer; {hint}")
    expect(got["layers"] == [name], f"{after} the active adapter is {layers}: {hint}")
    for path, named in (("", got["named"]), ("base_model.", ", ".join(got["active"]))):
        told = f"{after} the layers have it, but model.{path}active_adapter is {named!r}"
        expect(named == name, f"{told}: {hint}")


def _expect_seconds(seconds, least, took, call):
    told = f"{call} is {seconds!r}"
    good = type(seconds) in (int, float) and seconds > 0
    hint = ": the end minus the start" if type(seconds) in (int, float) else ": a float"
    expect(good, f"{told}, wanted the positive time of the switch{hint}")
    hint = "is it in milliseconds, or a time of day?"
    expect(seconds <= took + 1e-3, f"{told}, more than the {took:.2g} s of the whole call: {hint}")
    hint = "the switch lies between the two looks at the clock"
    expect(seconds > least, f"{told}, less than any switch takes: {hint}")


def expect_routed(route, seed, prompts):
    """`route` answers as its adapters do alone, in one batch, and gives all back as it was."""
    call = f"route with {len(prompts)} prompts"
    got = observe(fleet.routed, route, seed, list(prompts), list(NAMES))
    with part():
        _expect_settings(got, call)
    texts = got["texts"]
    listed = isinstance(texts, list) and all(isinstance(t, str) for t in texts)
    expect(listed, f"{call} must return a list of texts")
    expect(len(texts) == len(prompts), f"{call} gave {len(texts)} texts, wanted {len(prompts)}")
    with part():
        _expect_batch(got, prompts, call)
    with part():  # a model that was in evaluation mode stays there, and a side is as it was
        alone = observe(fleet.routed, route, seed, list(prompts[:1]), list(NAMES[:1]), False)
        _expect_settings(alone, "route with one prompt")
        told = "route with one prompt, of a tokenizer that has a first token and adds none"
        hint = "prompts come ready, take nothing off them: add_special_tokens=False"
        expect(alone["starts"], f"{told}: the prompt has it, and the model never reads it; {hint}")
    longest = max(len(text.split()) for text in prompts)
    whole = "no truncation, no max_length, and special tokens inside a prompt stay"
    told = f"{call}: the longest prompt has {longest} tokens and {got['longest']} of them arrive"
    expect(got["longest"] >= longest, f"{told}: {whole}")
    with part():
        hint = "decode with skip_special_tokens=True"
        expect(
            not any("<end>" in t for t in texts), f"{call}: special tokens in the answers: {hint}"
        )
    hint = "the prompt has it, and the tokenizer adds one: add_special_tokens=False"
    expect(not got["twice"], f"{call}: the first token stands twice; {hint}")
    _expect_texts([t.replace("<end>", " ") for t in texts], got, seed, prompts, call)


def _expect_settings(got, call):
    told = [f"{what} is {now}, it was {was}" for what, (was, now) in got["changed"].items()]
    expect(not told, f"{call} leaves settings changed: {', '.join(told)}; put them back")


def _expect_batch(got, prompts, call):
    n, hint = got["batch"], "put them all into one batch, generate takes adapter_names="
    slow = "one prompt at a time" if n == 1 else f"at most {n} prompts at a time"
    expect(n >= len(prompts), f"{call} answers {slow}: {hint}")


def _expect_texts(texts, got, seed, prompts, call):
    mine, wanted = _tidy(texts), _tidy(served.answered_alone(seed, prompts, NAMES))
    if mine == wanted:
        return
    drawn = "the model answers in training mode, where dropout draws by chance: model.eval() first"
    expect(not got["trained"], f"{call}: {drawn}")
    order = "the answers are in another order than the prompts"
    expect(sorted(mine) != sorted(wanted), f"{call}: {order}")
    for message, guess in _route_guesses(seed, prompts, wanted):
        expect(mine != _tidy(guess()), f"{call}: {message}")
    pairs = zip(mine, wanted, strict=True)
    wrong = [(i, *pair) for i, pair in enumerate(pairs) if pair[0] != pair[1]]
    if fleet.SAMPLED in got["options"]:
        told = "the answers are drawn by chance: the model's own generation_config asks for samples"
        raise CheckFailed(f"{call}: {told}, so generate has to be told do_sample=False")
    if options := got["options"]:
        listed = ", ".join(f"{name}={value}" for name, value in options.items())
        raise CheckFailed(f"{call}: generate got {listed}, and greedy decoding takes nothing of it")
    for _, yours, alone in wrong:
        _expect_length(yours, alone, call)
    for i, yours, alone in wrong:
        if yours and alone.endswith(yours):
            hint = "special tokens vanish in decoding, so cut the prompt off before it, by tokens"
            raise CheckFailed(
                f"{call}: the beginning of answer {i} is cut off with the prompt: {hint}"
            )
        if alone and yours.endswith(alone):
            hint = "cut off as many tokens as the padded batch has"
            raise CheckFailed(f"{call}: a part of the prompt stands before answer {i}: {hint}")
    longest = max(len(text.split()) for text in prompts)
    told = f"{call}: {got['longest']} tokens arrive, and the longest prompt has {longest}"
    expect(got["longest"] <= longest, f"{told}: prompts come ready, add nothing to them")
    i, yours, alone = wrong[0]
    hint = "is it in eval mode, greedy, padded on the left, with the tokenizer's mask?"
    told = f"{call}: answer {i} is not what {NAMES[i]} gives alone, {_difference(yours, alone)}"
    raise CheckFailed(f"{told}; {hint}", bare=True)


def _difference(yours, alone):
    """Where two texts part, in words."""
    n = next((k for k, (a, b) in enumerate(zip(yours, alone, strict=False)) if a != b), None)
    n = min(len(yours), len(alone)) if n is None else n
    same = f"equal up to letter {n}, then " if n else ""
    return f"{same}yours {yours[n : n + 30]!r}, alone {alone[n : n + 30]!r}"


def _tidy(texts):
    return [" ".join(text.split()) for text in texts]


def _expect_length(mine, wanted, call):
    limit = f"ask for max_new_tokens={fleet.NEW_TOKENS}"
    early = wanted.startswith(mine) and mine != ""
    short = f"by {len(wanted.split()) - len(mine.split())} of {len(wanted.split())} tokens"
    told = f"{call}: an answer stops early, {short}: {limit}, and cut nothing off its end"
    expect(not early, told)
    ended = len(wanted.split()) < fleet.NEW_TOKENS
    over = mine.startswith(wanted) and wanted != ""
    expect(
        not (over and ended), f"{call}: an answer goes on after its end token: leave it to generate"
    )
    expect(not over, f"{call}: an answer goes on: {limit}")


def _route_guesses(seed, prompts, wanted):
    """`(message, function that gives the texts)` of the misconceptions."""
    alone, together = served.answered_alone, served.answered_together
    plain = [" ".join(w for w in p.split() if w not in ("<start>", "<end>")) for p in prompts]
    whole = [f"{p} {w}" for p, w in zip(plain, wanted, strict=True)]
    yield "the prompts are part of the answers: cut the first n tokens off", lambda: whole
    hint = "special tokens vanish in decoding, so cut the prompt off before it, by tokens"
    by_text = [w[len(p) :] for p, w in zip(prompts, whole, strict=True)]
    yield f"the prompt's letters are cut off: {hint}", lambda: by_text
    by_word = [" ".join(w.split()[len(p.split()) :]) for p, w in zip(prompts, whole, strict=True)]
    yield f"the prompt's words are cut off: {hint}", lambda: by_word
    lines = [text.strip().partition("\n")[0] for text in alone(seed, prompts, NAMES)]
    yield "only the first line of an answer is left: all its lines are wanted", lambda: lines
    for name in fleet.ADAPTERS:
        told = f"{name} answered all of them: pass adapter_names= to generate"
        yield told, functools.partial(alone, seed, prompts, (name,) * len(NAMES))
    told = "the base model answered all of them, without any adapter"
    yield told, functools.partial(alone, seed, prompts, ("__base__",) * len(NAMES))
    by_size = dict(zip(_by_length(prompts), NAMES, strict=True))
    told = "the prompts were sorted without their names: sort both"
    names = tuple(by_size[i] for i in range(len(NAMES)))
    yield told, functools.partial(alone, seed, prompts, names)
    ordered = tuple(sorted(NAMES))
    for names in (NAMES[::-1], ordered, ordered[::-1], NAMES[1:] + NAMES[:1]):
        told = "adapter_names are in another order than the prompts"
        yield told, functools.partial(alone, seed, prompts, names)
    hint = "the answer continues the last token, so pad on the left"
    right = functools.partial(together, seed, prompts, NAMES, "right")
    left = functools.partial(together, seed, prompts, NAMES, "left")
    yield f"padded on the right: {hint}", lambda: right("tokenizer's")
    each = tuple((list(dict.fromkeys(NAMES)) * len(NAMES))[: len(NAMES)])
    told = "adapter_names has one name for each prompt, also where a name comes again"
    yield told, functools.partial(alone, seed, prompts, each)
    told = "the attention mask hides the other side than that of the padding"
    yield told, lambda: left("turned round")
    yield "the padding is read as text: pass attention_mask to generate", lambda: left("none")
    hint = "padding_side='left', and the attention mask goes to generate too"
    yield f"padded on the right, and the padding is read as text: {hint}", lambda: right("none")
    hint = "the end of a turn is the same token; take the tokenizer's mask"
    told = f"the mask hides tokens inside the prompts, not the padding alone: {hint}"
    yield told, lambda: left("not the pad token")


def _by_length(prompts):
    return sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
