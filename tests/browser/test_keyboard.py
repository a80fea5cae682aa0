"""Lab 1 by keyboard alone, as its guide tells: nothing here moves or clicks a mouse."""

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.xdist_group("test_jupyterlab")  # one JupyterLab serves both
ACTIVE = """() => [...document.querySelectorAll(".jp-Cell")].indexOf(
  document.querySelector(".jp-Cell.jp-mod-active"))"""
PLACE = """code => [...document.querySelectorAll(".jp-Cell")].findIndex(
  cell => cell.matches(".jp-CodeCell") &&
          cell.querySelector(".jp-InputArea")?.textContent.includes(code))"""
IN = "css => document.activeElement.matches(css)"


class Keyboard:
    """The keys of a notebook that is open."""

    def __init__(self, book):
        self.book, self.press = book, book.page.keyboard.press

    def go(self, code):
        """Choose the cell that holds `code` by the arrows."""
        expect(self.book.page.locator(".jp-Cell.jp-mod-active")).to_have_count(1)
        place = self.book.page.evaluate(PLACE, code)
        while (at := self.book.page.evaluate(ACTIVE)) != place:
            self.press("ArrowDown" if at < place else "ArrowUp")
            moved = "([before, js]) => eval(js)() !== before"
            self.book.page.wait_for_function(moved, arg=[at, ACTIVE])

    def run(self, code):
        """Choose the cell that holds `code`, run it to its end; its output."""
        self.go(code)
        self.press("Control+Enter")
        cell = self.book.cell(code)
        expect(cell.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[\d+\]:"))
        return cell.locator(".jp-Cell-outputArea")

    def write(self, code, new):
        """Go into the cell that holds `code`, write `new` in its place, and leave it."""
        self.go(code)
        self.press("Enter")
        self.press("ControlOrMeta+A")
        self.book.page.keyboard.insert_text(new)
        self.press("Escape")

    def tab_to(self, css):
        """Tab until it stands on what `css` names."""
        for _ in range(8):
            self.press("Tab")
            if self.book.page.evaluate(IN, css):
                return
        raise AssertionError(f"Tab does not lead to {css}")


def test_the_slider_needs_no_mouse(notebook):
    book = notebook("01_svd.ipynb", "Light")
    keys = Keyboard(book)
    for code in ("labkit.start", "from labkit.training import"):
        keys.run(code)
    keys.write("check.optimal", 'lab.reveal("1.1"); lab.reveal("1.2")')
    keys.run("lab.reveal(")
    keys.run("A photograph, rank by rank")
    part = keys.run("Move the slider")
    picture, number = part.locator("img"), part.locator(".widget-readout")
    expect(picture).to_be_visible()
    expect(number).to_have_text("10")
    keys.tab_to(".noUi-handle")
    for key, shown in (("ArrowRight", "11"), ("Home", "1")):
        before = picture.get_attribute("src")
        keys.press(key)
        expect(number).to_have_text(shown)
        expect(picture).not_to_have_attribute("src", before)
    keys.tab_to(".widget-readout")
    keys.press("ControlOrMeta+A")
    book.page.keyboard.type("42")
    keys.press("Enter")
    expect(number).to_have_text("42")
    book.shoot("01_svd-keyboard-slider", part)
