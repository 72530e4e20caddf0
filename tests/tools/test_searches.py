"""TPE beside a grid: both search the same space, and only the grid knows what to try."""

import pytest

from tests.helpers import sweep_runs, tuning_runs
from tools import searches


@pytest.mark.thorough
def test_what_each_search_found_is_told(tmp_path, capsys, monkeypatch):
    pytest.importorskip("optuna")
    place = tuning_runs.prepare(tmp_path)
    monkeypatch.setattr(searches, "RATES", (1e-3, 3e-3))
    monkeypatch.setattr(searches, "BATCH_SIZES", (8,))
    configs = searches.searches("configs/sweep/verses.py", 1)
    assert [config.search for config in configs.values()] == ["grid", "tpe"]
    assert [config.candidates[0]["space"]["batch_size"] for config in configs.values()] == [(8,)] * 2
    for config in configs.values():
        config.base, config.prompts = sweep_runs.config(place).base, sweep_runs.config(place).prompts
        config.candidates = ({**config.candidates[0], "prompt": "is"},)
    grid, tpe = searches.run(configs, tmp_path / "searches")
    assert (grid["trials"], tpe["trials"]) == (2, 1)
    assert grid["setting"]["schedule.peak_lr"] in (1e-3, 3e-3)
    assert 1e-3 <= tpe["setting"]["schedule.peak_lr"] <= 3e-3
