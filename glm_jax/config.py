"""Every key of a run, with its default. A file in configs/ takes this and changes what it is about."""

import dataclasses
import difflib
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from glm_jax.corruption.config import CorruptionConfig
from glm_jax.model.config import GLMConfig


def pretrain() -> ConfigDict:
    """All keys of a pretraining run, locked: assigning an unknown one fails with the nearest names.

    Durations are text with a unit: steps, tokens, examples, epochs, or % of the run.
    """
    config = ConfigDict()
    config.seed = 0
    config.train_duration = "100000 steps"
    config.batch_size = 256  # examples per optimizer step, over all devices and micro batches
    config.grad_accumulation_steps = 1  # micro batches per step; must divide batch_size
    config.init_from = None  # folder of another run whose parameters this one starts from

    config.data = ConfigDict()
    config.data.corpora = ({"source": "bible"},)  # see glm_jax.data.CorpusSpec
    config.data.sequence_length = 512  # L, raw tokens of a row; the model sees L + 2 · (blanks that fit)
    config.data.packing = "contiguous"  # or "sampled", the original's windows
    config.data.sample_one_document = False
    config.data.non_sentence_start = 0.0
    config.data.data_dir = "data"  # corpora and tokens are prepared here once
    config.data.tokenize_workers = None  # processes that tokenise; None: all cores
    config.data.loader_workers = 0  # processes that make batches; 0: threads of the training process, enough for most
    config.data.tokenizer = ConfigDict()
    config.data.tokenizer.path = None  # a tokenizer folder; None trains SentencePiece on the corpus
    config.data.tokenizer.vocabulary = None  # bert, roberta, gpt2, chinese: `path` has the files of that vocabulary
    config.data.tokenizer.task_masks = False  # with `vocabulary`: it gets [gMASK] and [sMASK]
    config.data.tokenizer.block_mask = False  # with `vocabulary`: it gets [dBLOCK]
    config.data.tokenizer.fix_command_token = True  # with `vocabulary`: False for the ids of 10b-chinese
    config.data.tokenizer.vocab_size = 4096
    config.data.tokenizer.normalization = "nmt_nfkc"
    config.data.tokenizer.byte_fallback = True
    config.data.tokenizer.model_type = "unigram"
    config.data.tokenizer.pad_vocab_to_multiple_of = 128
    config.data.tokenizer.training_megabytes = 200.0

    config.model = ConfigDict(convert_dict=False)
    config.model.size = None  # a named size (glm_jax.GLMConfig.named), whose fields the others replace
    for field in dataclasses.fields(GLMConfig):
        default = field.default if field.default is not dataclasses.MISSING else None
        config.model[field.name] = default  # None: from `size`; vocab_size None: the tokenizer's

    config.corruption = ConfigDict(dataclasses.asdict(CorruptionConfig()))  # see glm_jax.CorruptionConfig

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # or "adafactor"
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.1
    config.optimizer.max_grad_norm = 1.0  # None: no clipping
    config.optimizer.lr_multipliers = ()  # (pattern, factor) pairs; 0 freezes

    config.schedule = ConfigDict()
    config.schedule.name = "cosine"  # linear, constant, inverse_square_root, exponential
    config.schedule.peak_lr = 4e-4
    config.schedule.warmup = "5 %"  # of the decay
    config.schedule.decay = "100 %"
    config.schedule.decay_ratio = 0.1

    config.mesh = ConfigDict()  # sizes of data, fsdp, tensor; -1 takes the rest; all None: chosen and explained
    config.mesh.data = config.mesh.fsdp = config.mesh.tensor = None
    config.logical_axis_rules = ()  # (logical axis, mesh axes) pairs that replace those of glm_jax.sharding.RULES

    config.log_every = "100 steps"
    config.eval_every = "1000 steps"
    config.eval_examples = 2048  # validation rows scored each time, spread evenly, in whole batches; None: all
    config.sample_every = "1000 steps"  # the model fills blanks of held-out text
    config.checkpoint_every = "1000 steps"
    config.max_to_keep = 2
    config.keep_best = True  # also keep the checkpoint of the lowest validation loss, of those saved at an evaluation
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
    config = ConfigDict(pretrain())
    with config.unlocked():
        del config.corruption
        config.data = ConfigDict({"data_dir": "data", "tokenize_workers": None, "sequence_length": None})
        config.init_from = "runs/quickstart"  # a run, a folder of the hub, or the original's checkpoint
        config.tokenizer = placeholder(str)  # folder of a tokenizer, for checkpoints without one
        config.tasks = ()  # names as `evaluate` takes them, or dicts for glm_jax.tasks.task.from_settings
        config.weights = placeholder(tuple)  # shares of several tasks in the training rows; None: equal ones
        config.train_split, config.validation_split = "train", "validation"
        config.test_split = placeholder(str)  # scored at the end with the best checkpoint; None: the validation split
        config.few_shot = placeholder(int)  # this many training examples
        config.few_shot_seed = 0  # chooses them
        config.seeds = placeholder(tuple)  # several runs, whose results are averaged; None: one run with config.seed
        config.patience = placeholder(int)  # evaluations without a better score that end the run; None: never
        config.loss = "cross_entropy"  # of candidates: hinge, generative, mix, adapet
        config.label_smoothing = placeholder(float)  # of written answers; None: the task's
        config.length_penalty = placeholder(float)  # of candidates' scores; None: the task's
        config.head = "cloze"  # or "classifier", a head on the first token
        config.classes = placeholder(int)  # of the classifier; computed
        config.packed_length = placeholder(int)  # tokens of a row that several written answers share; None: a row each
        config.eval_batch_size = 16  # changes no result
    with config.model.ignore_type():
        for field in config.model:  # the checkpoint's; only what OVERRIDABLE names may be replaced
            config.model[field] = placeholder(OVERRIDABLE[field]) if field in OVERRIDABLE else None
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
    """GLM-Large's recipe for the published model `size`: also of those for which nothing else is told.

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
    config.schedule.decay_ratio = 0.05  # --lr-decay-ratio
    return config


def build(kind: type, values: Any, **computed) -> Any:
    """An instance of the dataclass `kind` from a config section; `computed` fills fields that the section leaves None.

    Raises ValueError for a key that `kind` does not have, with the nearest ones.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    values = {**values, **{key: value for key, value in computed.items() if values.get(key) is None}}
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=3) or names
            raise ValueError(f"{kind.__name__} has no field {key!r}; nearest: {', '.join(near)}")
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
