"""labkit in a submission: nothing is shown or trained."""

from labkit.grading.inside import quiet


def test_while_a_submission_is_graded_no_experiment_runs():
    lab, _ = quiet.start("04_qlora")
    assert lab.experiment("Time of a step", 10, needs=["4.6"]) is False
    assert lab.gpu("QLoRA with paged AdamW", "It would train.", needs=["4.6"]) is False


def test_a_guess_is_none_and_stops_no_cell(capsys):
    lab, _ = quiet.start("01_svd")
    guess = lab.predict("How many of 60?", 40)
    guess.beside(30)
    assert guess.value is None and capsys.readouterr().out == ""
