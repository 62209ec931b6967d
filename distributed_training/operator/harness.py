"""A state of a run as lm-evaluation-harness takes a model, and its tasks. Alone imports lm_eval, an optional extra.

No code of anybody else is run: data sets are read as data; metrics of the Hub, which are scripts, cannot be loaded; a
task file of the user's may not name functions of Python files.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from lm_eval import evaluator
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from distributed_training.errors import ConfigError, LocalFault, said
from distributed_training.operator.sample import State
from distributed_training.training.generate import Sampling, generate

for library in ("lm_eval", "huggingface_hub"):
    logging.getLogger(library).setLevel(logging.ERROR)
RESAMPLED = 100  # times, for the standard error of metrics that have no formula for it
MAX_ANSWER = 256  # tokens, where a task names no limit
LOGITS_BYTES = 256 << 20  # of one batch
FEWSHOT_SEED = 1234  # the harness's own

Pair = tuple[tuple[str, str], list[int], list[int]]


class Harnessed(TemplateLM):
    """The state's own tokeniser; text is read as it stands, and after the end of a document where there is none."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self._state, self._at = state, next(state.model.parameters()).device

    @property
    def eot_token_id(self) -> int:
        return self._state.tokenizer.eos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self._state.tokenizer.encode(string)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Each document whole, piece by piece where it is longer than the context."""
        return [sum(value for value, _ in self._loglikelihood_tokens(self._windows(r.args[0]))) for r in requests]

    def _windows(self, text: str) -> list[Pair]:
        found = get_rolling_token_windows(self.tok_encode(text), self.eot_token_id, self._state.context, 1)
        return [(("", ""), *make_disjoint_window(window)) for window in found]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return [self._answer(*request.args) for request in requests]

    def _answer(self, prompt: str, options: Mapping[str, Any]) -> str:
        until, tokenizer = options.get("until") or [], self._state.tokenizer
        ends, text, written = [until] if isinstance(until, str) else list(until), "", list[int]()
        sampling = Sampling(float(options.get("temperature", 0)) if options.get("do_sample") else 0, top_k=0)
        ids = tokenizer.encode(prompt) or [tokenizer.eos]
        drawing = generate(
            self._state.model, ids, sampling, vocab_size=tokenizer.vocab_size, context=self._state.context
        )
        for drawn in islice(drawing, options.get("max_gen_toks", MAX_ANSWER)):
            if drawn == tokenizer.eos or any(end in text for end in ends):
                break
            written.append(drawn)
            text = tokenizer.decode(written)
        return text[: min([len(text), *(text.find(end) for end in ends if end in text)])]

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **kwargs: Any) -> list[tuple[float, bool]]:
        """Of each second list after its first: log-probability, and whether it is the most likely at every place.
        What is longer than the context is cut from the left."""
        pairs = [((before + after)[-(self._state.context + 1) :], len(after)) for _, before, after in requests]
        found: dict[int, tuple[float, bool]] = {}
        for batch in self._batches([len(ids) for ids, _ in pairs]):
            width = max(len(pairs[i][0]) for i in batch) - 1
            rows = [
                [*pairs[i][0][:-1], *[0] * (width + 1 - len(pairs[i][0]))] for i in batch
            ]  # later ids change nothing
            with torch.inference_mode():
                logits = self._state.model(input_ids=torch.tensor(rows, device=self._at), use_cache=False).logits
            for i, row in zip(batch, logits, strict=True):
                ids, count = pairs[i][0], min(pairs[i][1], len(pairs[i][0]) - 1)
                scores = torch.log_softmax(row[len(ids) - 1 - count : len(ids) - 1].float(), dim=-1)
                wanted = torch.tensor(ids[-count:], device=self._at)
                value = scores.gather(1, wanted[:, None]).cpu().double().sum()
                found[i] = float(value), bool((scores.argmax(-1) == wanted).all())
        return [found[i] for i in range(len(pairs))]

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Places in `lengths`, the longest first, so many at a time as memory for the logits allows."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        row = 4 * self._state.manifest.model.config.get("vocab_size", self._state.tokenizer.vocab_size)
        while order:
            size = max(1, LOGITS_BYTES // (row * lengths[order[0]]))
            yield order[:size]
            order = order[size:]


def tasks(names: Sequence[str], cache: Path) -> dict[str, Any]:
    """Names of the harness, or files of the user's; data sets are fetched here. Raises ConfigError, LocalFault."""
    files = [_task_file(Path(name), cache) if name.endswith((".yaml", ".yml")) else name for name in names]
    manager = TaskManager(include_defaults=any(isinstance(spec, str) for spec in files))
    for spec in files:
        if isinstance(spec, str) and spec not in manager.all_tasks:
            raise ConfigError(f"--tasks: the harness has no task {spec!r}; --help names some, or give a .yaml file")
    try:
        loaded = manager.load(files)
    except Exception as error:  # of whatever library reads the data set
        why = said(error)[:200]
        raise LocalFault(f"--tasks {','.join(names)}: a data set or a metric cannot be had ({why})") from None
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return loaded  # type: ignore[return-value]


def scores(state: State, loaded: Any, limit: int | None) -> Mapping[str, Any]:
    """The harness's report. limit: samples of each task. Raises LocalFault for a task that cannot be done."""
    try:
        report = evaluator.evaluate(
            Harnessed(state),
            loaded,
            limit=limit,
            bootstrap_iters=RESAMPLED,
            log_samples=False,  # type: ignore[arg-type]
        )
    except (ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise LocalFault(f"the harness cannot do {', '.join(loaded['tasks'])}: {said(error)[:200]}") from None
    return report or {}


def _task_file(path: Path, cache: Path) -> dict[str, Any]:
    """Files of data that it names lie beside it."""
    try:
        task = yaml.safe_load(path.read_bytes())
        where = task.setdefault("dataset_kwargs", {}) if isinstance(task["task"], str) else None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: expected a task of lm-evaluation-harness in YAML, without functions of Python files "
            f"({said(error)[:120]})"
        ) from None
    if not isinstance(where, dict):
        raise ConfigError(f"{path}: expected `task` to be a name, and `dataset_kwargs` a table")
    if "data_files" in where:
        where["data_files"] = _beside(path.parent.absolute(), where["data_files"])
    return task | {"dataset_kwargs": where | {"cache_dir": str(cache / "datasets")}}


def _beside(folder: Path, files: Any) -> Any:
    if isinstance(files, dict):
        return {split: _beside(folder, names) for split, names in files.items()}
    return [_beside(folder, name) for name in files] if isinstance(files, list) else str(folder / str(files))
