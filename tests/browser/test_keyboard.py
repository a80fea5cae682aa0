"""Lab 1 by keyboard alone, as docs/learner.md tells it: nothing here moves or clicks a mouse."""

import pytest
from playwright.sync_api import TimeoutError, expect

# one JupyterLab serves both files
pytestmark = [pytest.mark.xdist_group("test_jupyterlab"), pytest.mark.thorough]
PLACES = """code => {
  const cells = [...document.querySelectorAll(".jp-Cell")];
  const holds = cell => cell.querySelector(".jp-InputArea")?.textContent.includes(code);
  return [cells.findIndex(cell => cell.matches(".jp-mod-active")), cells.findIndex(holds)];
}"""
MOVED = """before => [...document.querySelectorAll(".jp-Cell")].findIndex(
  cell => cell.matches(".jp-mod-active")) !== before"""
FOCUS = "css => document.activeElement.matches(css)"


class Keys:
    """The keys of somebody who has no mouse, in a notebook that is open."""

    def __init__(self, book):
        self.book, self.page, self.press = book, book.page, book.page.keyboard.press

    def go(self, text):
        """Choose the first cell whose source holds `text` by the arrows.

        A busy page may miss a key, or lose the focus: Escape leaves what one is in, Tab goes
        back into the notebook, and one presses again.
        """
        lost = 0
        while (places := self.page.evaluate(PLACES, text))[0] != places[1]:
            assert places[1] >= 0, f"no cell holds {text!r}"
            self.press("ArrowDown" if places[0] < places[1] else "ArrowUp")
            try:
                self.page.wait_for_function(MOVED, arg=places[0], timeout=5000)
            except TimeoutError:
                lost += 1
                assert lost < 5, f"the arrows do not lead to {text!r}"
                self.press("Escape")
                if self.page.evaluate(FOCUS, "body"):
                    self.press("Tab")

    def run(self, code):
        """Choose the cell that holds `code` and run it to its end; its output."""

        def go(code):
            self.go(code)
            self.press("Shift+Enter")

        return self.book.run(code, go=go)

    def replace(self, code, keys, new):
        """Go into the cell that holds `code`, select by `keys`, type `new`, and leave it."""
        self.go(code)
        self.press("Enter")
        expect(self.page.locator(".jp-Notebook.jp-mod-editMode")).to_have_count(1)
        for key in ("Control+End", *keys):
            self.press(key)
        self.page.keyboard.type(new)
        self.press("Escape")
        expect(self.page.locator(".jp-Notebook.jp-mod-commandMode")).to_have_count(1)

    def tab_to(self, css, key="Tab", most=6):
        """Tab until it stands on what `css` names."""
        for _ in range(most):
            self.press(key)
            if self.page.evaluate(FOCUS, css):
                return
        raise AssertionError(f"{most} times {key} do not lead to {css}")


TWO_LINES = ("Shift+Home", "Shift+ArrowUp", "Shift+Home")  # of TODO, and of what raises
BEST = """    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
return U[:, :r] * S[:r] @ Vh[:r]"""
ERROR = """    s = torch.linalg.svdvals(W)
return float(s[r:].norm() / s.norm())"""


def test_lab_1_needs_no_mouse(notebook):
    book = notebook("01_svd.ipynb", "Dark")
    keys = Keys(book)
    for code in ("labkit.start", "from labkit.training import"):
        keys.run(code)
    write(keys, "def best_rank_r", BEST)
    expect(keys.run("check.optimal")).to_contain_text("✓ 1.1")
    keys.go("Exercise 1.2")
    keys.tab_to("summary")  # past the cell's own buttons
    keys.press("Space")
    expect(book.page.locator(".jp-Cell.jp-mod-active details")).to_have_attribute("open", "")
    write(keys, "def relative_error", ERROR)
    expect(keys.run("check.errors")).to_contain_text("✓ 1.2")
    keys.run("A photograph, rank by rank")
    move_the_slider(keys, keys.run("Move the slider"))
    keys.tab_to(".jp-Cell", "Shift+Tab")  # and out of it again
    guess = "guess_noise = lab.predict"
    keys.replace(guess, ("ArrowUp", "End", "Control+Shift+ArrowLeft"), "60")
    expect(keys.run(guess)).to_contain_text("Your guess: 60.")
    book.shoot("01_svd-keyboard", book.cell(guess))


def write(keys, stub, answer):
    """Type an answer in the place of a stub's two lines, and run it."""
    keys.replace(stub, TWO_LINES, answer)
    keys.run(stub)


def move_the_slider(keys, part):
    """Another rank, another picture: by the arrows, by Home, and by a number that is typed."""
    picture, number = part.locator("img"), part.locator(".widget-readout")
    expect(picture).to_be_visible()
    expect(number).to_have_text("30")
    keys.go("Move the slider")
    keys.tab_to(".noUi-handle")
    for key, shown in (("ArrowRight", "31"), ("Home", "1")):
        before = picture.get_attribute("src")
        keys.press(key)
        expect(number).to_have_text(shown)
        expect(picture).not_to_have_attribute("src", before)
    keys.tab_to(".widget-readout")
    before = picture.get_attribute("src")
    keys.press("Control+A")
    keys.page.keyboard.type("42")
    keys.press("Enter")
    expect(number).to_have_text("42")
    expect(picture).not_to_have_attribute("src", before)
