"""labkit in a submission: nothing is shown or trained."""

from labkit.grading.inside import quiet


def test_while_a_submission_is_graded_no_experiment_runs():
    lab, _ = quiet.start("04_qlora")
    assert lab.experiment("Time of a step", 10, needs=["4.6"]) is False
    assert lab.gpu("QLoRA with paged AdamW", "It would train.", needs=["4.6"]) is False
