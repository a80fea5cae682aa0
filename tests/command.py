"""The command, called in this process."""

import pytest

from labkit import cli


def call(*args):
    """The exit code of `labkit ARGS`."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*map(str, args)])
    return ended.value.code or 0
