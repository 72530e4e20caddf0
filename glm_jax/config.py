"""Every key of a run, with its default. A file in configs/ takes this and changes what it is about."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from glm_jax.corruption.config import CorruptionConfig
from glm_jax.files import nearest
from glm_jax.methods import FirstLayers, LoRA, Prompt, PromptSpell, PTuningV2
from glm_jax.model.config import GLMConfig

KINDS = ("pretrain", "finetune")  # of runs

# Keys of earlier versions and their names now. Saved runs are read with them; in a config file or on the command line
# an old key is an error that names the new one.
OLD_KEYS = {
    "duration": "train_duration",
    "accumulation": "grad_accumulation_steps",
    "rules": "logical_axis_rules",
    "show_every": "sample_every",
    "keep_last": "max_to_keep",
    "schedule.peak": "schedule.peak_lr",
    "schedule.decay_ratio": "schedule.final_lr_ratio",
    "optimizer.multipliers": "optimizer.lr_multipliers",
    "corruption.side_by_side": "corruption.pack_objectives",
    "corruption.longest_span": "corruption.max_span_length",
    "corruption.cap_rate": "corruption.overflow_prob",
    "corruption.cut_rate": "corruption.truncation_rate",
    "data.workers": "data.tokenize_workers",
    "data.read_workers": "data.loader_workers",
    "data.tokenizer.vocab_multiple": "data.tokenizer.pad_vocab_to_multiple_of",
}


class Config(ConfigDict):
    """A ConfigDict that, once locked, answers the assignment of an unknown key with the key that was meant."""

    def __setitem__(self, key: str, value: Any) -> None:
        if self.is_locked and key not in self:
            raise KeyError(unknown_key(key, self))
        super().__setitem__(key, value)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The error message for a config key that does not exist: its new name, or the nearest of the `known` keys.

    `key` is dotted ("schedule.peak"), or the last part of it where `known` are the keys of one section.
    """
    for old, new in OLD_KEYS.items():
        if key == old or key == old.rpartition(".")[2]:
            return f"config key {key!r} was renamed to {new if key == old else new.rpartition('.')[2]!r}"
    return f"unknown config key {key!r}; nearest: {nearest(key, known)}"


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any, type]]:
    """Every dotted key with its value and type."""
    for name in config:
        if isinstance(config[name], ConfigDict):
            yield from leaves(config[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", config[name], config.get_type(name)


def find_key(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    """The section that holds a dotted key, and its name there.

    Raises LookupError for a key that does not exist, with the nearest ones, and for a section.
    """
    *sections, name = key.split(".")
    section: Any = config
    for part in sections:
        section = section[part] if isinstance(section, ConfigDict) and part in section else None
    if not isinstance(section, ConfigDict) or name not in section:
        known = [known for known, *_ in leaves(config)]
        raise LookupError(unknown_key(key, known if difflib.get_close_matches(key, known) else config))
    if isinstance(section[name], ConfigDict):
        raise LookupError(f"{key} is a section; set one of its keys: {', '.join(section[name])}")
    return section, name


def upgrade(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a config.json with the keys of today: old names are replaced, and `kind` is added.

    Keys that the run did not know are left out; see `with_defaults`.
    """
    upgraded = {key: dict(value) if isinstance(value, Mapping) else value for key, value in saved.items()}
    data = upgraded.get("data")
    if isinstance(data, dict) and isinstance(data.get("tokenizer"), Mapping):
        data["tokenizer"] = dict(data["tokenizer"])
    for old, new in OLD_KEYS.items():
        *sections, name = old.split(".")
        section: Any = upgraded
        for part in sections:
            section = section.get(part, {}) if isinstance(section, dict) else {}
        if isinstance(section, dict) and name in section:
            section[new.rpartition(".")[2]] = section.pop(name)
    upgraded.setdefault("kind", "finetune" if "tasks" in saved else "pretrain")
    return upgraded


def with_defaults(saved: Mapping[str, Any]) -> dict[str, Any]:
    """An upgraded config with the defaults of keys that are newer than the run, which keep the behaviour it had."""

    def merged(defaults: Mapping[str, Any], values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        missing = {key: value for key, value in defaults.items() if key not in values}
        return missing | {
            key: merged(defaults[key], value) if isinstance(defaults.get(key), Mapping) else value
            for key, value in values.items()
        }

    return merged((finetune() if saved["kind"] == "finetune" else pretrain()).to_dict(), saved)


def _with_types(kind: type, values: Mapping[str, Any]) -> Config:
    """A section for the fields of a dataclass. A field without a value gets a placeholder of its annotated type."""
    hints, section = typing.get_type_hints(kind), Config(convert_dict=False)
    for name, value in values.items():
        section[name] = placeholder(_plain_type(hints[name])) if value is None else value
    return section


def _plain_type(hint: Any) -> type:
    """The type that a value of this annotation has when it is not None."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    return typing.get_origin(hint) or hint


def pretrain() -> ConfigDict:
    """All keys of a pretraining run, locked: assigning an unknown one fails with the nearest names.

    Durations are text with a unit: steps, tokens, examples, epochs, or % of the run.
    """
    config = Config()
    config.kind = "pretrain"
    config.seed = 0
    config.train_duration = "100000 steps"
    config.batch_size = 256  # examples per optimizer step, over all devices and micro batches
    config.grad_accumulation_steps = 1  # micro batches per step; must divide batch_size
    config.init_from = placeholder(str)  # folder of a run whose parameters this one starts from; None or "": fresh ones

    config.data = Config()
    config.data.corpora = ({"source": "bible"},)  # see glm_jax.data.CorpusSpec
    config.data.sequence_length = 512  # L, raw tokens of a row; the model sees L + 2 · (blanks that fit)
    config.data.packing = "contiguous"  # or "sampled", the original's windows
    config.data.sample_one_document = False
    config.data.non_sentence_start = 0.0
    config.data.data_dir = "data"  # corpora and tokens are prepared here once
    config.data.tokenize_workers = placeholder(int)  # processes that tokenise; None: all cores
    config.data.loader_workers = 0  # processes that make batches; 0: threads of the training process, enough for most
    config.data.tokenizer = Config()
    config.data.tokenizer.path = placeholder(str)  # a tokenizer folder; None trains SentencePiece on the corpus
    config.data.tokenizer.vocabulary = placeholder(
        str
    )  # bert, roberta, gpt2, chinese: `path` has the files of that vocabulary
    config.data.tokenizer.task_masks = False  # with `vocabulary`: it gets [gMASK] and [sMASK]
    config.data.tokenizer.block_mask = False  # with `vocabulary`: it gets [dBLOCK]
    config.data.tokenizer.fix_command_token = True  # with `vocabulary`: False for the ids of 10b-chinese
    config.data.tokenizer.vocab_size = 4096
    config.data.tokenizer.normalization = "nmt_nfkc"
    config.data.tokenizer.byte_fallback = True
    config.data.tokenizer.model_type = "unigram"
    config.data.tokenizer.pad_vocab_to_multiple_of = 128
    config.data.tokenizer.training_megabytes = 200.0

    fields = {field.name: field.default for field in dataclasses.fields(GLMConfig)}
    del fields["adapter_dropout"]  # a tuning method's
    config.model = _with_types(  # None: from `size`; vocab_size None: the tokenizer's
        GLMConfig, {name: None if value is dataclasses.MISSING else value for name, value in fields.items()}
    )
    config.model.size = placeholder(str)  # a named size (glm_jax.GLMConfig.named), whose fields the others replace

    config.corruption = _with_types(CorruptionConfig, dataclasses.asdict(CorruptionConfig()))  # see CorruptionConfig

    config.optimizer = Config()
    config.optimizer.name = "adamw"  # or "adafactor"
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.1
    config.optimizer.max_grad_norm = 1.0  # None: no clipping
    config.optimizer.lr_multipliers = ()  # (pattern, factor) pairs; 0 freezes

    config.schedule = Config()
    config.schedule.name = "cosine"  # linear, constant, inverse_square_root, exponential
    config.schedule.peak_lr = 4e-4
    config.schedule.warmup = "5 %"  # of the decay
    config.schedule.decay = "100 %"
    config.schedule.final_lr_ratio = 0.1  # the rate after the decay, divided by the peak

    config.mesh = Config()  # sizes of data, fsdp, tensor; -1 takes the rest; all None: chosen and explained
    for axis in ("data", "fsdp", "tensor"):
        config.mesh[axis] = placeholder(int)
    config.logical_axis_rules = ()  # (logical axis, mesh axes) pairs that replace those of distributed/sharding.py

    config.log_every = "100 steps"
    config.eval_every = "1000 steps"
    config.eval_examples = 2048  # validation rows scored each time, spread evenly, in whole batches; None: all
    config.sample_every = "1000 steps"  # the model fills blanks of held-out text
    config.checkpoint_every = "1000 steps"
    config.max_to_keep = 2
    config.keep_best = True  # also keep the checkpoint of the lowest validation loss, of those saved at an evaluation
    config.patience = placeholder(int)  # evaluations without a better result that end the run; None: never
    config.compilation_cache = ""  # folder of compiled programs; "": JAX_COMPILATION_CACHE_DIR, else none
    return config.lock()


# Fields of the model that fine-tuning may change.
OVERRIDABLE = {
    "hidden_dropout": float, "attention_dropout": float, "dtype": str, "remat": str, "scan_layers": bool,
    "attention_backend": str,
}  # fmt: skip


def finetune() -> ConfigDict:
    """All keys of a fine-tuning run, locked. What it shares with pretraining has the same names.

    Defaults are the original's (its arguments, and config_tasks/task_*.sh). Epochs count the training examples.
    """
    config = Config(pretrain())
    with config.unlocked():
        config.kind = "finetune"
        del config.corruption
        config.data = Config({"data_dir": "data", "loader_workers": 0})
        config.data.tokenize_workers, config.data.sequence_length = placeholder(int), placeholder(int)
        config.init_from = "runs/quickstart"  # a run, a folder of the hub, or the original's checkpoint
        config.tokenizer = placeholder(str)  # folder of a tokenizer, for checkpoints without one
        config.tasks = ()  # names as `evaluate` takes them, or dicts for glm_jax.tasks.task.from_settings
        config.weights = placeholder(tuple)  # shares of several tasks in the training rows; None: equal ones
        config.train_split, config.validation_split = "train", "validation"
        config.test_split = placeholder(str)  # scored at the end with the best checkpoint; None: the validation split
        config.few_shot = placeholder(int)  # this many training examples
        config.few_shot_seed = 0  # chooses them
        config.seeds = placeholder(tuple)  # several runs, whose results are averaged; None: one run with config.seed
        config.loss = "cross_entropy"  # of candidates: hinge, generative, mix, adapet
        config.label_smoothing = placeholder(float)  # of written answers; None: the task's
        config.length_penalty = placeholder(float)  # of candidates' scores; None: the task's
        config.head = "cloze"  # or "classifier", a head on one token
        config.classes = placeholder(int)  # of the classifier; computed
        config.pool = (
            "cls"  # the token that a classifier reads: the first; start, of Part B; or pad, the last of Part A
        )
        config.method = "full"  # what trains: a name in glm_jax.methods.METHODS, with its section below; docs/tuning.md
        for kind in (LoRA, PTuningV2, Prompt, PromptSpell, FirstLayers):
            config[kind.name] = _with_types(kind, dataclasses.asdict(kind()))
        config.frozen_dtype = "float32"  # of the parameters that do not train; bfloat16 halves their memory
        config.packed_length = placeholder(int)  # tokens of a row that several written answers share; None: a row each
        config.eval_batch_size = 16  # changes no result
    hints = typing.get_type_hints(GLMConfig)
    with config.model.ignore_type():
        for field in config.model:  # the checkpoint's; only what OVERRIDABLE names may be replaced
            hint = OVERRIDABLE.get(field) or (str if field == "size" else _plain_type(hints[field]))
            config.model[field] = placeholder(object if hint is Any else hint)
    config.train_duration = "20 epochs"
    config.batch_size = 16
    config.optimizer.b2, config.optimizer.eps = 0.999, 1e-8
    config.schedule.name, config.schedule.peak_lr = "linear", 1e-5
    config.schedule.warmup = "10 %"
    config.log_every = "50 steps"
    config.eval_every = config.checkpoint_every = "1 epochs"
    with config.ignore_type():
        config.eval_examples = placeholder(int)
    config.sample_every = "0 steps"
    config.max_to_keep = 1
    return config.lock()


def sweep() -> ConfigDict:
    """All keys of a sweep, locked. docs/sweeps.md explains them.

    The keys of a space and of a candidate are dotted keys of `base`, such as "schedule.peak_lr", or "prompt". The
    values of a space are tuples, or ranges for random and TPE search: {"low": 1e-4, "high": 1e-2, "log": True}.
    """
    config = Config(convert_dict=False)
    config.kind = "sweep"
    config.base = finetune()  # every trial, before its changes; chosen on validation_split, reported on test_split
    config.candidates = ({"name": "full"},)  # what is compared: a name, changes of `base`, and a `space` of its own
    config.space = {}  # searched for every candidate; a candidate's own space replaces and adds keys
    config.prompts = {}  # values of the key "prompt": name -> a task's name, or settings that replace those of the task
    config.ensembles = {}  # name -> names of candidates whose log-probabilities are averaged, one more row
    config.search = "grid"  # all combinations; or random, or tpe, which needs Optuna
    config.trials = placeholder(int)  # trials of each candidate's search, random and tpe only
    config.search_seed = 0  # of random and TPE
    config.prune = False  # stop trials that are worse than the median at the same step
    config.metric = placeholder(str)  # what is maximised: a name as in metrics.jsonl without "validation_"; None: score
    config.seeds = (0, 1, 2)  # of the setting that is chosen for each candidate; the search runs with the first
    config.keep_checkpoints = False  # also those of trials that were not chosen
    config.workers = placeholder(int)  # processes; None: one for each accelerator, or for every two cores
    return config.lock()


def original(size: str) -> ConfigDict:
    """`pretrain()` for the published model `size`, with what the original's pretraining scripts have in common.

    Left to the config file: text, objective, schedule, steps and batch. Sources: config/*.sh and *.json of the
    original, and its argument defaults; Table 7 of the paper has the same optimizer.
    """
    config = pretrain()
    config.seed = 1234
    config.model.size = size
    config.model.remat = "full"  # --checkpoint-activations; "none" is faster where memory allows it
    config.data.packing = "sampled"
    config.corruption.average_span_length = 3.0
    config.corruption.document_min_ratio = 0.5
    config.optimizer.b1, config.optimizer.b2, config.optimizer.eps = 0.9, 0.98, 1e-6
    config.optimizer.weight_decay = 0.1
    config.optimizer.max_grad_norm = 1.0
    config.checkpoint_every = "5000 steps"
    return config


def original_large(size: str) -> ConfigDict:
    """GLM-Large's recipe for the published model `size`: also for those whose recipe is not published.

    Sources: config/ds_block_large.sh and config_block_large.json of the original, equal to Table 7 of the paper.
    """
    config = original(size)
    config.train_duration = "200000 steps"  # Table 7, --train-iters
    config.batch_size = 1024  # Table 7

    # English Wikipedia and BooksCorpus (paper, section 3.1): one document a line. 949,50,1 is the script's --split.
    config.data.corpora = ({"source": "texts/wikibook/*.txt", "documents": "line", "validation_fraction": 0.05},)
    config.data.sequence_length = 512  # --seq-length
    config.data.tokenizer.vocabulary = "bert"  # bert-large-uncased
    config.data.tokenizer.path = "vocabularies/bert"

    config.schedule.name = "cosine"  # Table 7, --lr-decay-style
    config.schedule.peak_lr = 2e-4  # Table 7, the script's json
    config.schedule.warmup = "8000 steps"  # Table 7; --warmup .05 of the decay
    config.schedule.decay = "160000 steps"  # --lr-decay-iters
    config.schedule.final_lr_ratio = 0.05  # --lr-decay-ratio
    return config


def build(kind: type, values: Any, **computed) -> Any:
    """An instance of the dataclass `kind` from a config section; `computed` fills fields that the section leaves None.

    Raises ValueError for a key that `kind` does not have, with the nearest ones.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    values = {**values, **{key: value for key, value in computed.items() if values.get(key) is None}}
    for key in values:
        if key not in names:
            raise ValueError(f"{kind.__name__} has no field {key!r}; nearest: {nearest(key, names)}")
    return kind(**values)


def model_config(section: Any, vocab_size: int) -> GLMConfig:
    """The model of a run: the named size with the section's other fields, or the fields alone.

    Raises ValueError when a field is missing, or when the vocabulary is smaller than the tokenizer's `vocab_size`.
    """
    fields = {key: section[key] for key in section if key != "size" and section[key] is not None}
    fields.setdefault("vocab_size", vocab_size)
    if fields["vocab_size"] < vocab_size:
        raise ValueError(
            f"model.vocab_size {fields['vocab_size']} is smaller than the tokenizer's {vocab_size}; leave it None"
        )
    if section["size"] is not None:
        return GLMConfig.named(section["size"], **fields)
    missing = [
        f.name for f in dataclasses.fields(GLMConfig) if f.default is dataclasses.MISSING and f.name not in fields
    ]
    if missing:
        raise ValueError(f"model needs {', '.join(missing)}, or a named size in model.size")
    return GLMConfig(**fields)
