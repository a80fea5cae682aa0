"""Derive a chat template for Ollama: the text before and after each message.

Ollama does not run the template inside a GGUF. It compares the template with those it knows and
omits all markers if none is close. The Modelfile therefore spells out the markers, taken from the
tokenizer's output. `turns` returns them only if they reproduce the same question.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from labkit.ship.vocabulary import begins

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MESSAGES = ("Sx7", "Ux7", "Ax7", "Vx7")  # system, user, answer, user
ROLES = ("system", "user", "assistant", "user")


@dataclass(frozen=True)
class Turns:
    """The template's text around messages; `default` is its default system message."""

    before_system: str
    after_system: str
    before_user: str
    after_user: str
    after_answer: str
    default: str
    several: bool = True  # whether conversations of several turns match, too

    def template(self) -> str:
        """Ollama's TEMPLATE for one turn, in the language of Go's text/template."""
        return (
            f"{{{{ if .System }}}}{self.before_system}{{{{ .System }}}}{self.after_system}"
            f"{{{{ end }}}}{{{{ if .Prompt }}}}{self.before_user}{{{{ .Prompt }}}}{self.after_user}"
            f"{{{{ end }}}}{{{{ .Response }}}}{self.after_answer}"
        )

    def text(self, messages: list[dict]) -> str:
        """Render messages as Ollama would with this template, up to the start of the answer."""
        if self.default and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default}, *messages]
        around = {
            "system": (self.before_system, self.after_system),
            "user": (self.before_user, self.after_user),
            "assistant": ("", self.after_answer),
        }
        return "".join(m["content"].join(around[m["role"]]) for m in messages)


def turns(tokenizer: "PreTrainedTokenizerBase") -> Turns | None:
    """The text of `tokenizer`'s template around messages; None if Ollama can't reproduce it.

    A single question must match exactly. If longer conversations don't match, `several` is False.
    """
    try:
        found = _read(tokenizer)
    except Exception:  # some templates raise at a system message
        return None
    if found is None or '"""' in found.template() or found.template().count("{{") != 7:
        return None
    longer, *short, one = (found.text(said) == _text(tokenizer, said) for said in _conversations())
    if not (short[0] and one):
        return None
    return replace(found, several=longer and short[1])


def _conversations():
    whole = [{"role": r, "content": c} for r, c in zip(ROLES, MESSAGES, strict=True)]
    return [whole, whole[:2], whole[1:], whole[1:2]]


def _text(tokenizer, messages):
    """The template's output, without the BOS token if the engine adds one."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text.removeprefix(tokenizer.bos_token) if begins(tokenizer) else text


def _read(tokenizer):
    whole, _, _, alone = (_text(tokenizer, said) for said in _conversations())
    parts = []
    for said in MESSAGES:
        part, found, whole = whole.partition(said)
        if not found:
            return None
        parts.append(part)
    start, between, _, again = parts
    first, _, after = alone.partition(MESSAGES[1])
    user = _common_end(_common_end(between, again), first)
    mark = tokenizer.eos_token or ""
    if mark and mark in user:  # the previous turn's end is not the user's
        user = user.rpartition(mark)[2].removeprefix("\n")
    after_system, after_answer = between.removesuffix(user), again.removesuffix(user)
    left = first.removesuffix(user)
    default = left.removeprefix(start).removesuffix(after_system)
    return Turns(start, after_system, user, after, after_answer, default)


def _common_end(a, b):
    n = 0
    while n < min(len(a), len(b)) and a[-1 - n] == b[-1 - n]:
        n += 1
    return a[len(a) - n :]
