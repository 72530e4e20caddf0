"""Configs on the command line: files, keys, their types, and one line for every mistake."""

import subprocess
import sys

import pytest

from glm_jax import __main__ as door
from glm_jax import config as config_lib
from glm_jax.cli.configs import ConfigError, read_config, replace_keys, split_words
from tests.helpers.paths import ROOT

QUICKSTART = "configs/pretrain/quickstart.py"
CONFIG_VERBS = ("pretrain", "finetune", "sweep", "prepare", "plan")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def _end(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        door.main(arguments)
    return end.value.code, capsys.readouterr()


def test_words_are_split_from_the_others():
    words = ["--a=1", "--config", "f.py:x", "--config.b", "-1", "--config.c", "--d", "--config.e=f=g", "--noconfig.h"]
    file, replaced, rest = split_words(words)
    assert file == "f.py:x"
    assert replaced == {"b": "-1", "c": None, "e": "f=g", "h": "false"}
    assert rest == ["--a=1", "--d"]


def test_texts_are_read_by_the_type_of_their_key():
    config = replace_keys(
        config_lib.pretrain(),
        {
            "batch_size": "8", "optimizer.eps": "1e-4", "keep_best": "false", "data.sample_one_document": None,
            "schedule.name": "linear", "model.size": "base", "mesh.fsdp": "-1", "optimizer.max_grad_norm": "None",
            "optimizer.lr_multipliers": "(('a', 0.5),)", "logical_axis_rules": "'x'", "init_from": "runs/x",
        },
    )  # fmt: skip
    assert (config.batch_size, config.optimizer.eps, config.keep_best) == (8, 1e-4, False)
    assert (config.data.sample_one_document, config.schedule.name, config.model.size) == (True, "linear", "base")
    assert (config.mesh.fsdp, config.optimizer.max_grad_norm) == (-1, None)
    assert (config.optimizer.lr_multipliers, config.logical_axis_rules) == ((("a", 0.5),), ("x",))
    assert config.init_from == "runs/x"
    assert config.is_locked


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.modle.num_layers=3"], "unknown config key 'modle.num_layers'; nearest: model.num_layers"),
        (["--config.num_layers=3"], "nearest: model.num_layers"),
        (["--config.zzz=3"], "unknown config key 'zzz'; nearest: batch_size"),
        (["--config.batch_size.x=3"], "unknown config key 'batch_size.x'; nearest: batch_size"),
        (["--config.batch_size=abc"], "--config.batch_size=abc: 'abc' is no int, such as 24"),
        (["--config.batch_size=1.5"], "'1.5' is no int"),
        (["--config.batch_size"], "--config.batch_size: no value is no int"),
        (["--config.keep_best=maybe"], "'maybe' is no bool, such as True"),
        (["--config.data.corpora=bible"], "'bible' is no tuple, such as ({'source': 'bible'"),
        (["--config.model=3"], "model is a section; set one of its keys: "),
        (["--config"], "--config names no file"),
    ],
)
def test_wrong_keys_and_values_are_answered_in_one_line(words, message, capsys):
    code, printed = _end(["pretrain", f"--config={QUICKSTART}", "--workdir=runs/x", *words], capsys)
    assert code == 2
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_a_renamed_key_is_answered_with_its_new_name():
    with pytest.raises(ConfigError, match=r"config key 'schedule.peak' was renamed to 'schedule.peak_lr'"):
        read_config(QUICKSTART, {"schedule.peak": "1e-3"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import absent_package\n", "line 1: ModuleNotFoundError: No module named 'absent_package'"),
        ("x = 1\ndef get_config(:\n", "line 2: SyntaxError"),
        ("def get_config():\n    return 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("def get_config():\n    return 3\n", r"get_config\(\) returns int, not an ml_collections.ConfigDict"),
        ("x = 1\n", r"defines no get_config\(\)"),
        (
            "from glm_jax import config\ndef get_config():\n    c = config.pretrain()\n    c.model.num_layer = 2\n",
            "line 4: AttributeError: unknown config key 'num_layer'; nearest: num_layers",
        ),
    ],
)
def test_a_file_that_fails_says_where(text, message, tmp_path):
    file = tmp_path / "config.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_config(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("configs/pretrain/quickstrt.py", "is no config file; nearest: configs/pretrain/quickstart.py"),
        ("no/such.py", "no/such.py is no config file: name one of configs/"),
        ("README.md", "README.md is no Python file"),
        (f"{QUICKSTART}:large", "quickstart.py has no variants: leave out :large"),
        ("configs/finetune/superglue.py:nix", "unknown task 'nix': choose from boolq"),
    ],
)
def test_a_file_that_is_none_is_refused(file, message):
    with pytest.raises(ConfigError, match=message):
        read_config(file)


@pytest.mark.parametrize("verb", door.VERBS)
def test_every_verb_has_help_with_examples(verb, capsys):
    code, printed = _end([verb, "--help"], capsys)
    assert code == 0
    if verb == "benchmark":
        assert "  step " in printed.out
        return
    assert printed.out.count(f"\n  python -m glm_jax {verb} ") >= 2
    assert ("--print-config" in printed.out) == (verb in CONFIG_VERBS)


def _dotted_keys(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _dotted_keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.mark.parametrize("verb", CONFIG_VERBS)
def test_all_keys_are_printed(verb, capsys):
    code, printed = _end([verb, "--print-config"], capsys)
    assert code == 0
    config = getattr(config_lib, verb if verb in ("finetune", "sweep") else "pretrain")()
    assert {line.partition(" = ")[0] for line in printed.out.splitlines()} == set(_dotted_keys(config.to_dict()))
    base = "base." if verb == "sweep" else ""
    assert f"{base}grad_accumulation_steps = 1  # micro batches per step; must divide batch_size\n" in printed.out


def test_the_printed_config_is_that_of_the_command(capsys):
    words = ["pretrain", f"--config={QUICKSTART}", "--config.batch_size=7", "--print-config"]
    code, printed = _end(words, capsys)
    assert code == 0
    assert "batch_size = 7  # " in printed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", f"--config={QUICKSTART}"], "pretrain: --workdir is missing"),
        (["finetune", "--workdir=x"], "finetune: --config=FILE is missing"),
        (["plan", f"--config={QUICKSTART}"], "plan: --topology is missing"),
        (["plan", f"--config={QUICKSTART}", "--slices=two"], "argument --slices: invalid int value: 'two'"),
        (["pretrain", f"--config={QUICKSTART}", "--workdir=x", "now"], "pretrain: unknown argument 'now'"),
        (
            ["pretrain", "--config=configs/finetune/ag_news.py", "--workdir=x"],
            "configs/finetune/ag_news.py is a config of another kind; use it with python -m glm_jax finetune",
        ),
        (["prepare", f"--config={QUICKSTART}", "--runner=x"], "prepare: unknown argument '--runner=x'"),
        (["generate", "--chekpoint=x", "--prompt=y"], "unknown argument '--chekpoint=x'; nearest: --checkpoint"),
        (["evaluate", "--tasks=boolq"], "the following arguments are required: --checkpoint"),
        (["convert", "a", "b"], "the following arguments are required: --to"),
    ],
)
def test_wrong_arguments_are_answered_in_one_line(arguments, message, capsys):
    code, printed = _end(arguments, capsys)
    assert code == 2
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_no_thread_of_jax_runs_before_the_memory_is_set_up():
    """glibc must be told after the imports, and before JAX starts its threads."""
    code = (
        "import sys\nfrom glm_jax.cli import pretrain\n"
        "def check():\n"
        "    from jax._src import xla_bridge\n"
        "    print('glm_jax.training.trainer' in sys.modules, xla_bridge.backends_are_initialized())\n"
        "    sys.exit(3)\n"
        "pretrain.keep_freed_memory = check\npretrain.main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, f"--config={QUICKSTART}", "--workdir=x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "True False\n")
