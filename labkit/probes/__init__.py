"""What runs next to a learner's code, one file per lab, and returns facts to its checks."""
