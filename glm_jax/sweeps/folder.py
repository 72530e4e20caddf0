"""What a sweep leaves on disk.

sweep.json       the config
trials/HASH/     a run folder of each trial: trial.json says how it ended, log.txt what it printed; of the chosen ones
                 report/ holds the test, or test_error.json says why there is none
baselines/NAME/  the results of a candidate that is a baseline
ensembles/NAME/  those of an ensemble, by seed
search/          Optuna's journals, of TPE
selection.json   the setting chosen for each candidate, written before any test score exists
results.json     everything that the report reads, written last
tensorboard/     the trials as rows of its HParams tab
programs/        compiled programs, which all trials share
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from glm_jax.evaluation.results import RESULTS
from glm_jax.files import config_changes, file_name, write_json_atomic
from glm_jax.sweeps.space import SweepError, Trial

# Keys that may differ when the same command is given again; of the seeds, more may be named.
FREE_KEYS = ("workers", "keep_checkpoints")
COMPLETE, FAILED, PRUNED = "complete", "failed", "pruned"
TEST_ERROR = "test_error.json"


@dataclasses.dataclass(frozen=True)
class SweepFolder:
    """Paths and records inside the folder of a sweep."""

    path: pathlib.Path

    @property
    def programs(self) -> pathlib.Path:
        """The cache of compiled programs."""
        return self.path / "programs"

    def trial(self, trial: Trial) -> pathlib.Path:
        """The run folder of a trial."""
        return self.path / "trials" / trial.name

    def baseline(self, name: str) -> pathlib.Path:
        """The folder of a baseline, by its candidate's name."""
        return self.path / "baselines" / file_name(name)

    def record(self, trial: Trial) -> dict[str, Any] | None:
        """How a trial ended; None for one that has not."""
        return _read(self.trial(trial) / "trial.json")

    def test_error(self, run: pathlib.Path) -> str | None:
        """Why the test of a run failed; None where it did not."""
        return (_read(run / TEST_ERROR) or {}).get("error")

    def records(self) -> list[dict[str, Any]]:
        """How all trials ended that have."""
        found = (_read(path) for path in sorted(self.path.glob("trials/*/trial.json")))
        return [record for record in found if record is not None]

    def finish(self, trial: Trial, record: Mapping[str, Any]) -> dict[str, Any]:
        """Writes how a trial ended: its mark that it need not run again."""
        record = {"candidate": trial.candidate, "changes": dict(trial.changes), **record, "ended_at": time.time()}
        self.trial(trial).mkdir(parents=True, exist_ok=True)
        write_json_atomic(self.trial(trial) / "trial.json", record)
        return record

    def selection(self) -> dict[str, Any] | None:
        """The chosen settings, by candidate; None before they are chosen."""
        return _read(self.path / "selection.json")

    def results(self, seeds: Sequence[int] | None = None) -> dict[str, Any] | None:
        """The results of a sweep that is complete; with `seeds`, only those of exactly these."""
        results = _read(self.path / "results.json")
        if results is not None and seeds is not None and results["config"]["seeds"] != list(seeds):
            return None
        return results

    def read_config(self) -> dict[str, Any]:
        """sweep.json. Raises SweepError for a folder that is no sweep's."""
        config = _read(self.path / "sweep.json")
        if config is None:
            raise SweepError(f"{self.path} is no folder of a sweep: it has no sweep.json (a --workdir of a sweep)")
        return config

    def claim(self, config: ConfigDict) -> None:
        """Takes the folder for `config`, or checks that it already belongs to it; raises SweepError for another's."""
        if self.path.exists() and not self.path.is_dir():
            raise SweepError(f"{self.path} is a file: choose a folder as --workdir")
        current = json.loads(json.dumps(config.to_dict(), default=list))
        saved = _read(self.path / "sweep.json")
        if saved is None:
            if (self.path / "config.json").exists():
                raise SweepError(f"{self.path} is the folder of a run: choose another --workdir")
            self.path.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self.path / "sweep.json", current)
            return
        adds_seeds = current["seeds"][: len(saved["seeds"])] == saved["seeds"]
        if changes := config_changes(saved, current, (*FREE_KEYS, *["seeds"] * adds_seeds)):
            raise SweepError(
                f"{self.path} belongs to another sweep ({changes}): set these back to go on with it, or choose another "
                "--workdir"
            )
        if saved != current:
            write_json_atomic(self.path / "sweep.json", current)


def is_tested(run: pathlib.Path) -> bool:
    """Whether a folder holds the results of the test split."""
    return (run / "report" / RESULTS).exists()


def _read(path):
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SweepError(f"{path} is not JSON ({error}): delete it to compute it again") from error
