"""Continuous Autoregressive Language Models: runs of `calm` from Python.

>>> import calm_lm
>>> run = calm_lm.open("runs/calm")
>>> chunk = run.draw("ana bolo du elf fugo ana"[:12], samples=1, seed=3)
>>> chunk.format, chunk.shape
('I', (1, 3))

Numbers are `memoryview`s (the buffer protocol): `numpy.asarray(view)` and `torch.frombuffer(view, dtype=...)` share their
memory, `view.tolist()` makes lists. What is passed in may be anything with a buffer, or lists. All arithmetic is the
program's own; errors are `CalmError`, with what to do about them in `remedy`.

`calm_lm.harness` makes a run a model of lm-evaluation-harness.
"""

import os as _os

# A second pool of threads, which waits by spinning, would be in the way of the first.
_os.environ.setdefault("CANDLE_NUM_THREADS", "1")

from ._native import (  # noqa: E402
    CalmError,
    Run,
    Text,
    __version__,
    brierlm,
    brierlm_file,
    open,
)

__all__ = [
    "CalmError",
    "Run",
    "Text",
    "__version__",
    "brierlm",
    "brierlm_file",
    "open",
]
