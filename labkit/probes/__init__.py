"""Probes call the learner's code, next to it, and return facts to the checks, `{noun: value}`.

A check compares the facts one by one, and the learner sees the first wrong one. Each lab has a
file; the others are shared.
"""
