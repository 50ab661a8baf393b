"""Runs of calm as models of lm-evaluation-harness (`pip install lm-eval`).

    python -m calm_lm.harness run --model calm --model_args run=runs/baseline --tasks lambada_openai,sciq
    python -m calm_lm.harness run --model calm-bound-64 --model_args run=runs/k4 --tasks sciq

`calm` answers log-likelihood tasks with the probabilities of families that have them. A CALM has none: `calm-bound-N` answers
with the bound of N draws a chunk, a log-likelihood from below, and says so in the name that results are filed under. Tasks
that generate text work with either.

Importing this module is what registers the names; `python -m calm_lm.harness` is `lm-eval` with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Optional

import calm_lm

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from tqdm import tqdm
except ImportError as error:
    raise ImportError("calm_lm.harness needs lm-evaluation-harness: pip install lm-eval") from error

__all__ = ["BOUNDS", "CalmLM", "bound", "main"]

# Draws a chunk for which a name is registered.
BOUNDS = (1, 8, 64, 512)

# Requests between two steps of a progress bar.
_STEP = 64


class CalmLM(LM):
    """A run. Its arguments are those of `calm_lm.open`, and for text `draws` and `temperature`: where whole chunks are drawn,
    tasks that want the most probable text get text at this temperature.
    """

    # Draws a chunk; None asks for probabilities.
    samples: Optional[int] = None

    def __init__(
        self,
        run: Optional[str] = None,
        checkpoint: str = "best",
        device: Optional[str] = None,
        decode: Optional[str] = None,
        temperature: float = 0.5,
        draws: int = 200,
        places: int = 16,
        seed: int = 1,
        batch_size: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        super().__init__()
        # Batches are made by what fits; nothing depends on their size.
        del batch_size, max_batch_size
        # lm-eval says "cuda:0" where nobody said anything; "auto" takes that one if it is there.
        device = "auto" if device in (None, "cuda:0") else device
        self.run = calm_lm.open(run, checkpoint=checkpoint, device=device, decode=decode)
        if self.samples is not None and self.run.exact:
            raise ValueError(f"{self.run!r} has probabilities of its own: use --model calm")
        self.temperature, self.draws = float(temperature), int(draws)
        self.places, self.seed = int(places), int(seed)

    @property
    def tokenizer_name(self) -> str:
        return str(self.run.folder)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self._ask("loglikelihood", [request.args for request in requests], True, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        texts = [request.args for request in requests]
        answers = self._ask("loglikelihood_rolling", [("", text) for (text,) in texts], False, disable_tqdm)
        return [log_p for log_p, _ in answers]

    def _ask(
        self, kind: str, pairs: list[tuple[str, str]], greedy: bool, quiet: bool
    ) -> list[tuple[float, bool]]:
        if self.samples is None and not self.run.exact:
            names = ", ".join(f"calm-bound-{n}" for n in BOUNDS)
            raise ValueError(
                f"{self.run!r} has no probabilities: name the bound, --model calm-bound-64 (there are {names})"
            )
        answers: list[tuple[float, bool]] = []
        for part in _parts(pairs, kind, quiet):
            found = self.run.log_likelihoods(
                part, samples=self.samples or 1, seed=self.seed, greedy=greedy
            )
            for (context, text), answer in zip(part, found):
                if greedy:
                    self.cache_hook.add_partial(kind, (context, text), answer)
                else:
                    self.cache_hook.add_partial(kind, (text,), answer[0])
            answers.extend(found)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        texts: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        for places in groups.values():
            how = self._writing(requests[places[0]].args[1])
            for part in _parts(places, "generate_until", disable_tqdm):
                # Noise is keyed by a text's number among all requests that are written alike.
                number = places.index(part[0])
                prompts = [requests[i].args[0] for i in part]
                for i, text in zip(part, self.run.generate(prompts, number=number, **how)):
                    texts[i] = text.text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text.text)
        return texts

    def _writing(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What a task asks for in the words of `Run.generate`."""
        until = asked.get("until") or []
        most = next((asked[key] for key in ("max_gen_toks", "max_new_tokens", "max_tokens") if key in asked), 256)
        temperature = float(asked.get("temperature") or 0.0)
        greedy = temperature == 0.0 or asked.get("do_sample") is False
        if greedy:
            temperature = 0.0 if self.run.has_probabilities else self.temperature
        return {
            "max_tokens": int(most),
            "until": [until] if isinstance(until, str) else list(until),
            "temperature": temperature,
            "top_p": 1.0 if greedy else float(asked.get("top_p") or 1.0),
            "draws": self.draws,
            "places": self.places,
            "seed": self.seed,
        }


def _parts(items: list[Any], kind: str, quiet: bool) -> Iterator[list[Any]]:
    with tqdm(total=len(items), desc=f"calm {kind}", disable=quiet) as bar:
        for at in range(0, len(items), _STEP):
            part = items[at : at + _STEP]
            yield part
            bar.update(len(part))


def bound(samples: int) -> type[CalmLM]:
    """Registers and returns the model `calm-bound-N`."""
    name = f"calm-bound-{samples}"
    # Results of models that are passed as objects are filed under the name of their class.
    return register_model(name)(type(name, (CalmLM,), {"samples": samples, "__doc__": CalmLM.__doc__}))


register_model("calm")(CalmLM)
for _samples in BOUNDS:
    bound(_samples)


def main(arguments: Optional[Iterable[str]] = None) -> None:
    """`lm-eval`, which knows the models of this module."""
    import sys

    from lm_eval.__main__ import cli_evaluate

    if arguments is not None:
        sys.argv[1:] = list(arguments)
    cli_evaluate()
