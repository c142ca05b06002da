"""Processes of one run: they find each other, and where one ends early all end and say why.

Left alone, a process whose neighbour has died waits in a collective, or for the neighbour to say goodbye.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed

_FAULT, _ALIVE = "lgjax/fault", "lgjax/alive"
_DONE = "done"


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Find the other processes, by the environment where arguments are None.

    Raises:
        RuntimeError: they did not come within five minutes.
        ValueError: the environment does not tell.
    """
    jax.distributed.initialize(coordinator, processes, process)


@contextlib.contextmanager
def together(silence: float) -> Iterator[None]:
    """What several processes do together: a fault of one ends all within seconds, with its words on each.

    A process that is not heard of for `silence` seconds counts as dead. Then, and after a fault, a process
    ends at once with status 1 and no goodbye, for which it would wait in vain. Where process 0 dies, over
    which all speak, jax's own service ends the others. `SystemExit` passes. With one process nothing is done.
    """
    if jax.process_count() == 1:
        yield
        return
    client: Any = distributed.global_state.client
    over = threading.Event()
    threading.Thread(target=_watch, args=(client, silence, over), daemon=True).start()
    try:
        yield
    except Exception as error:
        _leave(_agreed(client, _words(error)))
    except KeyboardInterrupt:
        _leave(_agreed(client, f"process {jax.process_index()} was interrupted"))
    finally:
        over.set()
        with contextlib.suppress(Exception):
            client.key_value_set(f"{_ALIVE}/{jax.process_index()}", _DONE, allow_overwrite=True)


def _words(error: Exception) -> str:
    """A fault in words that stand for it on every process."""
    me, reason = jax.process_index(), str(error).strip() or type(error).__name__
    if isinstance(error, jax.errors.JaxRuntimeError):
        reason = reason.partition("\n")[0][:200]
        return f"another process of this run has died, or cannot be reached by process {me} ({reason})"
    return f"process {me}: {reason}"


def _agreed(client: Any, words: str) -> str:
    """The first fault of the run, which is what made the others fail; `words` where it is this one."""
    with contextlib.suppress(Exception):
        client.key_value_set(_FAULT, words)  # refused where there is one
    return _fault(client) or words


def _fault(client: Any) -> str | None:
    try:
        return client.key_value_try_get(_FAULT)
    except Exception:  # there is none, or nobody to ask
        return None


def _watch(client: Any, silence: float, over: threading.Event) -> None:
    """Say every few seconds that this process lives, and end it where another does not or has failed."""
    me = jax.process_index()
    heard: dict[str, tuple[str, float]] = {}
    beat = 0
    while not over.wait(min(silence / 10, 5.0)):
        beat += 1
        try:
            client.key_value_set(f"{_ALIVE}/{me}", str(beat), allow_overwrite=True)
            beats = dict(client.key_value_dir_get(_ALIVE))
        except Exception:
            continue  # process 0 is gone, and jax's own service ends this one
        if (words := _fault(client)) and not over.wait(1.0):  # its own thread may be about to say so
            _leave(words)
        now = time.monotonic()
        for key, value in beats.items():
            if key not in heard or heard[key][0] != value:
                heard[key] = value, now
        for key, (value, since) in heard.items():
            if value != _DONE and now - since > silence and not over.is_set():
                number = key.rsplit("/", 1)[-1]
                _leave(_agreed(client, f"process {number} has not been heard of for {silence:g} s"))


def _leave(words: str) -> None:
    """End this process without the exit handlers, which would wait for the others."""
    print(f"lgjax: {words}; --resume goes on from the newest checkpoint", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
