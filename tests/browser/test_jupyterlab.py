"""What a learner does and sees. The pictures in build/screenshots are there to be looked at."""

from pathlib import Path

from playwright.sync_api import expect

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")

WRONG = """def lora_forward(x, W, A, B, alpha):
    return x @ W.T + alpha * (x @ A.T) @ B.T"""
RIGHT = WRONG.replace("alpha *", "alpha / A.shape[0] *")
FOUR_STEPS = """live.REDRAW_SECONDS = 0.2  # so that a fast machine shows it growing too
model, tokenizer = models.load()
inject(model, ["q_proj", "v_proj"], r=8, alpha=16)
curve = live.Curves("Your LoRA", 4, "loss", ["loss"])
batches = loop.batches(home, tokenizer, size=16, steps=4)
for loss in train(model, batches, 4, 2e-3):
    curve.add(loss=loss)"""
# each picture that the page shows from here on, and the text beside it
WATCH = """cell => {
  window.seen = new Set();
  const look = () => cell.querySelectorAll("img").forEach(image => window.seen.add(image.src));
  new MutationObserver(look).observe(cell, {childList: true, subtree: true, attributes: true});
}"""
# WCAG's contrast of an element's text with what lies behind it
CONTRAST = """element => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(
      v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ink = light(getComputedStyle(element).color);
  let behind = element;
  while (/, 0\\)$|transparent/.test(getComputedStyle(behind).backgroundColor))
    behind = behind.parentElement;
  const paper = light(getComputedStyle(behind).backgroundColor);
  return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
}"""


def begin(book):
    """Run the cells that each lab begins with; the first is folded and has nothing to do here."""
    folded = book.page.locator(".jp-CodeCell").first
    expect(folded).to_contain_text("Set-up: installs the course")
    book.page.locator(".jp-MarkdownCell h1").click()
    for _ in range(2):
        book.page.keyboard.press("Shift+Enter")
    header = book.run("labkit.start(")
    expect(header).to_contain_text("Model: SmolLM2-135M-Instruct")
    expect(book.cell("labkit.start").locator(".jp-InputPrompt")).to_have_text("[2]:")
    expect(folded.locator(".jp-InputPlaceholder")).to_be_visible()
    expect(folded.locator(".jp-OutputArea-output")).to_have_count(0)
    book.shoot("02_lora-header", header)
    book.run("from labkit.training import")


def readable(part):
    """Whether text stands out from what lies behind it as WCAG AA asks."""
    return part.evaluate(CONTRAST) >= 4.5


def test_lab_2_from_a_wrong_answer_to_a_trained_model(notebook):
    book = notebook("02_lora.ipynb", "Light")
    begin(book)
    expect(book.run("figures.low_rank").locator("img")).to_be_visible()
    book.shoot("02_lora-begin", book.cell("figures.low_rank"))
    check = "check.matches_dense"
    book.run("def lora_forward")
    expect(book.run(check)).to_contain_text("○ 2.1 lora_forward: not written yet")
    for answer, verdict, name in ((WRONG, "✗ 2.1", "wrong"), (RIGHT, "✓ 2.1", "right")):
        book.write("def lora_forward", answer)
        book.run("def lora_forward")
        told = book.run(check, errors=int(name == "wrong"))
        expect(told).to_contain_text(verdict)
        assert "\n" not in told.inner_text().strip(), "a verdict is one line"
        assert readable(told.locator("pre > *, pre").last)
        book.shoot(f"02_lora-{name}", told)
        if name == "wrong":  # docs/pictures/check.png is this picture
            assert f"![{told.inner_text().strip()}]" in README
            book.page.keyboard.press("Control+b")  # without the side bar, it fits on a line
            book.frame("check", book.cell("def lora_forward"), told)
    learn(book)


def learn(book):
    """Reveal what training needs, and see the curve of four steps move and finish."""
    for exercise, check in (("2.2", "check.layer"), ("2.4", "check.injects")):
        book.write(check, f'lab.reveal("{exercise}")')
        told = book.run(f'reveal("{exercise}")')
        expect(told).to_contain_text(f"◐ {exercise} is revealed")
    book.shoot("02_lora-revealed", told)
    book.run('tasks.draw("home"')
    book.run("def train(")
    book.write("Your LoRA learns", FOUR_STEPS)
    cell = book.cell("REDRAW_SECONDS")
    cell.evaluate(WATCH)
    book.run("REDRAW_SECONDS")
    expect(cell.locator("code")).to_contain_text("4/4")
    assert len(book.page.evaluate("[...window.seen]")) >= 3, "the curve moved"
    book.shoot("02_lora-live", cell.locator("img"))
