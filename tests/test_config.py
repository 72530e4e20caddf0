"""Keys of a run: every one can be set on the command line, and configs of earlier versions open."""

import json

import pytest

from glm_jax import config as config_lib
from glm_jax.cli.configs import replace_keys

# A text for the command line by type, and the value that it stands for.
TEXTS = {
    str: ("x", "x"),
    int: ("3", 3),
    float: ("0.5", 0.5),
    bool: ("True", True),
    tuple: ("(1, 'a')", (1, "a")),
}


def _keys(section, prefix=""):
    for name in section:
        if isinstance(section[name], config_lib.ConfigDict):
            yield from _keys(section[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", section.get_type(name)


ALL_KEYS = [(make, key, kind) for make in (config_lib.pretrain, config_lib.finetune) for key, kind in _keys(make())]


@pytest.mark.parametrize(("make", "key", "kind"), ALL_KEYS, ids=[f"{make.__name__}-{key}" for make, key, _ in ALL_KEYS])
def test_every_key_can_be_set_on_the_command_line(make, key, kind):
    text, expected = TEXTS[kind]
    value = replace_keys(make(), {key: text})
    for part in key.split("."):
        value = value[part]
    assert value == expected
    assert type(value) is kind


def test_a_key_without_a_value_is_null_in_json():
    for make in (config_lib.pretrain, config_lib.finetune):
        saved = json.loads(json.dumps(make().to_dict()))
        assert saved["mesh"] == {"data": None, "fsdp": None, "tensor": None}
        assert saved["model"]["num_layers"] is None
        assert saved["kind"] == make.__name__


OLD = {
    "duration": "3 steps", "accumulation": 2, "rules": [["vocab", None]], "show_every": "1 steps", "keep_last": 3,
    "schedule": {"peak": 1e-3, "decay_ratio": 0.2, "name": "linear"}, "optimizer": {"multipliers": [["a", 0]]},
    "corruption": {"side_by_side": True, "longest_span": 9, "cap_rate": 0.1, "cut_rate": 0.2},
    "data": {"workers": 1, "read_workers": 2, "tokenizer": {"vocab_multiple": 64}, "sequence_length": 48},
}  # fmt: skip
NEW = {
    "kind": "pretrain", "train_duration": "3 steps", "grad_accumulation_steps": 2,
    "logical_axis_rules": [["vocab", None]], "sample_every": "1 steps", "max_to_keep": 3,
    "schedule": {"peak_lr": 1e-3, "final_lr_ratio": 0.2, "name": "linear"},
    "optimizer": {"lr_multipliers": [["a", 0]]},
    "corruption": {
        "pack_objectives": True, "max_span_length": 9, "overflow_prob": 0.1, "truncation_rate": 0.2,
    },
    "data": {
        "tokenize_workers": 1, "loader_workers": 2, "tokenizer": {"pad_vocab_to_multiple_of": 64},
        "sequence_length": 48,
    },
}  # fmt: skip


def test_a_saved_config_of_an_earlier_version_has_todays_keys():
    before = json.dumps(OLD)
    assert config_lib.upgrade(OLD) == NEW
    assert json.dumps(OLD) == before
    assert config_lib.upgrade(NEW) == NEW
    assert config_lib.upgrade({"tasks": [], "data": {"workers": None}}) == {
        "kind": "finetune", "tasks": [], "data": {"tokenize_workers": None},
    }  # fmt: skip
    assert config_lib.upgrade({"model": {}}) == {"kind": "pretrain", "model": {}}


def test_every_old_key_leads_to_a_key_that_exists():
    known = dict(_keys(config_lib.pretrain()))
    assert set(config_lib.OLD_KEYS.values()) <= set(known)
    assert not set(config_lib.OLD_KEYS) & set(known)


def test_keys_that_are_newer_than_a_run_have_their_defaults():
    filled = config_lib.with_defaults(NEW)
    assert set(dict(_keys(config_lib.pretrain()))) <= set(_dotted(filled))
    assert filled["schedule"] == NEW["schedule"] | {"warmup": "5 %", "decay": "100 %"}
    assert filled["patience"] is None


def _dotted(tree, prefix=""):
    for name, value in tree.items():
        yield from _dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]


def test_an_old_or_unknown_key_is_answered_with_the_one_that_was_meant():
    config = config_lib.pretrain()
    for section, key, message in (
        (config, "duration", "config key 'duration' was renamed to 'train_duration'"),
        (config.schedule, "peak", "config key 'peak' was renamed to 'peak_lr'"),
        (config.data, "workers", "config key 'workers' was renamed to 'tokenize_workers'"),
        (config.data.tokenizer, "vocab_multiple", "renamed to 'pad_vocab_to_multiple_of'"),
        (config, "batch_sise", "unknown config key 'batch_sise'; nearest: batch_size"),
        (config_lib.finetune().model, "num_layer", "nearest: num_layers"),
    ):
        with pytest.raises(AttributeError, match=message):
            setattr(section, key, 1)
    assert config_lib.unknown_key("schedule.decay_ratio", ()) == (
        "config key 'schedule.decay_ratio' was renamed to 'schedule.final_lr_ratio'"
    )
