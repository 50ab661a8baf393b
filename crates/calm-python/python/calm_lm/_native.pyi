"""Types of what is compiled. Views say their numbers by `format`: "I" uint32, "Q" uint64, "f" float32, "d" float64."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, Optional, Protocol, TypedDict, Union, overload

__version__: str

class _Buffer(Protocol):
    def __buffer__(self, flags: int, /) -> memoryview: ...

_Path = Union[str, os.PathLike[str]]
# Anything with a buffer, or lists in lists.
_Numbers = Union[_Buffer, Sequence[Any]]

class Scores(TypedDict):
    brierlm: Optional[float]
    brierlm_se: Optional[float]
    brier: Optional[list[float]]
    brier_se: Optional[list[float]]
    undefined_replicates: Optional[float]
    positions: int
    documents: int

class CalmError(Exception):
    remedy: Optional[str]

class Text:
    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> memoryview: ...
    @property
    def ended(self) -> bool: ...
    @property
    def stopped(self) -> bool: ...
    @property
    def forced(self) -> bool: ...
    @property
    def draws(self) -> int: ...

class Run:
    @property
    def folder(self) -> pathlib.Path: ...
    @property
    def family(self) -> str: ...
    @property
    def chunk_size(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def exact(self) -> bool: ...
    @property
    def has_probabilities(self) -> bool: ...
    @property
    def device(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def special(self) -> dict[str, int]: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def results(self) -> Optional[dict[str, Any]]: ...
    def metrics(self) -> dict[str, dict[str, memoryview]]: ...
    def encode(self, text: str) -> memoryview: ...
    def decode(self, tokens: _Numbers) -> str: ...
    def encode_chunks(self, tokens: Union[str, _Numbers]) -> tuple[memoryview, memoryview]: ...
    def decode_latents(self, latents: _Numbers) -> memoryview: ...
    def draw(
        self,
        context: Union[str, _Numbers],
        samples: int = 1,
        *,
        seed: int = 1,
        call: int = 0,
    ) -> memoryview: ...
    @overload
    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        draws: int = 200,
        until: Sequence[str] = ...,
        seed: int = 1,
        places: int = 16,
        number: int = 0,
    ) -> Text: ...
    @overload
    def generate(
        self,
        prompt: list[str],
        *,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        draws: int = 200,
        until: Sequence[str] = ...,
        seed: int = 1,
        places: int = 16,
        number: int = 0,
    ) -> list[Text]: ...
    def log_likelihoods(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        samples: int = 64,
        seed: int = 1,
        greedy: bool = True,
    ) -> list[tuple[float, bool]]: ...

def open(
    folder: Optional[_Path] = None,
    *,
    checkpoint: str = "best",
    device: str = "auto",
    decode: Optional[str] = None,
) -> Run: ...
def brierlm(
    targets: _Numbers,
    samples: _Numbers,
    documents: Optional[_Numbers] = None,
    *,
    eos: Optional[int] = None,
) -> Scores: ...
def brierlm_file(path: _Path, *, eos: Union[int, str, None] = None) -> Scores: ...
