"""Each lab, as solved, and with what people change in it."""

from attack import source
from honest import honest

LABS = ("06_merging", "07_ship", "08_rewards", "09_distill")


def _as_it_is(lab):
    def make(book):
        pass

    make.__name__ = f"lab_{int(lab[:2])}_as_it_is"
    honest(lab)(make)


for lab in LABS:
    _as_it_is(lab)


@honest("01_svd")
def lab_1_without_tags(book):
    """Experiments lose their tags in Colab, and are cells that fail or are skipped."""
    for cell in book.cells:
        cell["metadata"] = {}


@honest("03_peft")
def lab_3_cells_of_experiments_deleted(book):
    book.cells[:] = [c for c in book.cells if "lab.experiment" not in source(c)]


@honest("04_qlora")
def lab_4_scores_everywhere(book):
    book.cells[:] = [c for c in book.cells if c["cell_type"] == "code"]
    book.last("lab.score()")
    book.early("lab.score()")
