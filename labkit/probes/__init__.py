"""Code that runs next to a learner's, one file per lab, and returns facts to its checks."""
