"""Grading on many machines: submissions mapped over `dask.distributed`.

Each worker process holds one judge with its warm process. A task that a worker loses is given to
another one, so each submission is graded, and one that was graded is not graded again. Workers need
this course installed, and bubblewrap, as the machine that grades alone does.
"""

import contextlib
import threading

from labkit.errors import LabError
from labkit.grading import pool

_lock, _judges = threading.Lock(), {}
TRIES = 3  # how many workers may end while they grade the same submission


@contextlib.contextmanager
def client(workers=None, scheduler=None):
    """A Dask client of a scheduler at an address, or of `workers` processes here.

    LabError where Dask is missing or the address does not answer.
    """
    if workers and scheduler:
        raise LabError("say --workers or --scheduler, not both")
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise LabError("no dask.distributed here: pip install 'lora-labs[cluster]'") from None
    if scheduler:
        try:
            found = Client(scheduler, timeout=10)
        except (OSError, ValueError) as error:
            raise LabError(f"no Dask scheduler at {scheduler}: {error}") from None
        with found:
            yield found
        return
    how = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**how) as cluster, Client(cluster) as found:
        yield found


def work(todo, client, setup):
    """Yield `(key, row, sources)` for each `(key, name, read, seed)` of `todo` as it is done.

    `read()` gives the bytes, or None when the file has changed. `setup` is what
    `pool.JudgeProcess` takes.
    """
    from distributed import as_completed

    waiting, futures = list(reversed(todo)), {}
    wide = 2 * max(1, sum(client.nthreads().values()))  # notebooks on the way at a time

    def submit():
        key, name, read, seed = waiting.pop()
        future = client.submit(
            _grade, name, read(), seed, setup, key=f"grade-{key}", pure=False, retries=TRIES
        )
        futures[future.key] = (key, name)
        return future

    done = as_completed([submit() for _ in range(min(wide, len(waiting)))])
    for future in done:
        key, name = futures.pop(future.key)
        yield (key, *_result(future, name))
        future.release()
        if waiting:
            done.add(submit())


def _result(future, name):
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, LabError):
        raise error
    return pool.crashed(name, f"no worker could grade it: {type(error).__name__}"), {}


def _grade(name, data, seed, setup):
    """Runs on a worker: one judge a process, one submission at a time."""
    if data is None:
        return pool.gone(name), {}
    with _lock:
        key = repr(setup)
        if key not in _judges:
            while _judges:
                _judges.popitem()[1].stop()
            _judges[key] = pool.JudgeProcess(*setup)
        return _judges[key].grade(name, data, seed)
