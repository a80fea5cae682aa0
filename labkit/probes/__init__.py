"""Code that runs next to the learner's, one file per lab, and returns facts to the checks."""
