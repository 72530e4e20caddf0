"""Every file of configs/sweep builds a sweep whose trials can be made."""

import pytest

from glm_jax.cli.configs import read_config
from glm_jax.sweeps.search import check_search
from glm_jax.sweeps.space import candidates_of, grid, trial_config
from tests.helpers.paths import ROOT

FILES = sorted(path.name for path in (ROOT / "configs/sweep").glob("*.py"))
VARIANTS = {"seq2seq.py": (":gigaword", ":xsum"), "objectives.py": (":ag_news", ":verses")}


@pytest.mark.parametrize("file", [name + variant for name in FILES for variant in VARIANTS.get(name, ("",))])
def test_a_config_makes_its_trials(file):
    config = read_config(str(ROOT / "configs/sweep" / file))
    candidates = candidates_of(config)
    check_search(config.search, config.trials, candidates)
    for candidate in candidates:
        for point in grid(candidate.space):
            trial = trial_config(config, {**candidate.changes, **point})
            assert trial.validation_split != config.base.test_split


def test_the_embedded_one_can_be_run_here(monkeypatch):
    """Its tasks and splits are read, and its classes are those of the labels."""
    from glm_jax.sweeps.run import check

    monkeypatch.chdir(ROOT)
    assert [c.name for c in check(read_config("configs/sweep/verses.py"))][:3] == [
        "part last",
        "part first",
        "other words",
    ]
    assert len(check(read_config("configs/sweep/kjv_to_web.py"))) == 3
