"""Which learning runs there are to make, the finished ones on disk, and the table of all of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.learning_runs import ALONE, SYNCHRONOUS, TOGETHER, Model, Setting
from distributed_training.averaging.plan import layout_of
from distributed_training.averaging.sizes import output_bytes, uplink_bytes
from distributed_training.errors import ConfigError
from distributed_training.recipes.build import model_size

FROM_ROUND = 5  # from here on a run must be better than its best single miner
Curve = dict[int, float]  # held-out loss after so many rounds


@dataclass(frozen=True, slots=True)
class Finished:
    setting: Setting
    seed: int
    curve: Curve
    cpu_s: float  # of one seed

    @property
    def loss(self) -> float:
        return self.curve[max(self.curve)]

    @property
    def steps(self) -> int:
        """At speed 1."""
        return self.setting.steps * self.setting.rounds

    def after(self, steps: int) -> float | None:
        """The loss after so many steps at speed 1, if it was measured there."""
        return self.curve.get(steps // self.setting.steps) if steps % self.setting.steps == 0 else None

    def line(self) -> str:
        curve = {str(done): round(loss, 5) for done, loss in self.curve.items()}
        return json.dumps(asdict(self.setting) | {"seed": self.seed, "cpu_s": round(self.cpu_s, 1), "curve": curve})


def read_finished(path: Path | None) -> list[Finished]:
    """Raises ConfigError for a line that is none of these runs."""
    if path is None or not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            fields = json.loads(line)
            seed, cpu_s, curve = (fields.pop(name) for name in ("seed", "cpu_s", "curve"))
            fields |= {"model": Model(**fields["model"]), "speeds": tuple(fields["speeds"])}
            fields["outer"] = fields["outer"] and tuple(fields["outer"])
            found.append(Finished(Setting(**fields), seed, {int(d): loss for d, loss in curve.items()}, cpu_s))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}, line {number}: expected a finished learning run: {error!r}") from None
    return found


def missing(wanted: Sequence[Setting], seeds: Sequence[int], finished: Sequence[Finished]) -> Iterator[Setting]:
    """Those that some seed has not finished."""
    done = {(each.setting.identity, each.seed) for each in finished}
    return (setting for setting in wanted if any((setting.identity, seed) not in done for seed in seeds))


def table(finished: Sequence[Finished]) -> list[dict[str, Any]]:
    """One row a run that averages, with what it is compared with at as many steps of the same seed."""
    return [_row(run, finished) for run in finished if run.setting.who == TOGETHER]


def failures(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Runs that fall behind their best single miner."""
    return [
        f"{row['miners']} miners, speeds {row['speeds']}, H {row['H']}, seed {row['seed']}: no better than the best "
        f"single miner after round {row['behind_single']}"
        for row in rows
        if row["behind_single"] is not None
    ]


def find(run: Finished, finished: Iterable[Finished], who: str, optimizer: str) -> Finished | None:
    """What `run` is compared with, if it was made: the same text, model and steps; H does not matter to it."""
    speeds = run.setting.speeds if who == SYNCHRONOUS else (max(run.setting.speeds),)
    for other in finished:
        theirs = other.setting
        same = theirs.who == who and theirs.optimizer == optimizer and theirs.speeds == speeds and not theirs.fresh
        same = same and theirs.model == run.setting.model and other.seed == run.seed
        if same and other.steps >= run.steps and _decay(theirs) == _decay(run.setting):
            return other
    return None


def _decay(setting: Setting) -> Any:
    return setting.inner.get("decay_steps")


def _row(run: Finished, finished: Sequence[Finished]) -> dict[str, Any]:
    setting = run.setting
    single = find(run, finished, ALONE, setting.optimizer)
    ideal, plain = (find(run, finished, SYNCHRONOUS, name) for name in (setting.optimizer, "adamw"))
    at = [None if other is None else other.after(run.steps) for other in (single, ideal, plain)]
    gained = None if at[0] is None or at[1] is None else (at[0] - run.loss) / (at[0] - at[1])
    return {
        "optimizer": setting.optimizer,
        "miners": len(setting.speeds),
        "speeds": ",".join(map(str, setting.speeds)),
        "H": setting.steps,
        "rounds": setting.rounds,
        "step": setting.model.batch * setting.model.length,
        "outer": "{}/{}".format(*setting.outer or ("-", "-")),
        "weights": setting.weights,
        "decay": _decay(setting),
        "seed": run.seed,
        "heldout_loss": run.loss,
        "single_best": at[0],
        "synchronous": at[1],
        "synchronous_adamw": at[2],
        "gained": gained,
        "behind_single": None if single is None else _behind(run, single),
        "bytes_per_miner": bytes_a_round(setting) * setting.rounds,
    }


def _behind(run: Finished, single: Finished) -> int | None:
    """The last round, from FROM_ROUND on, after which the run was no better than the single miner; None: there is
    none."""
    behind = [
        done
        for done, loss in run.curve.items()
        if done >= FROM_ROUND and (other := single.after(done * run.setting.steps)) is not None and loss >= other
    ]
    return max(behind, default=None)


def bytes_a_round(setting: Setting) -> int:
    """What a miner sends in a round: its vector to the reducers and its reduced slice to all others; synchronous
    workers an fp32 gradient by ring all-reduce at every step."""
    miners, size = len(setting.speeds), model_size(setting.model.config)
    if setting.who == ALONE or miners == 1:
        return 0
    share = (miners - 1) / miners
    if setting.who == SYNCHRONOUS:
        return round(2 * share * 4 * size * setting.own_steps[0])
    manifest = setting.manifest()
    layout = layout_of(manifest, size)
    return round(share * (uplink_bytes(manifest, layout) + output_bytes(manifest, layout)))
