"""Every file of configs/pretrain builds, and trains the model, the objective and the schedule that it says."""

import ast
import importlib.util
import os
import pathlib
import types

import jax
import numpy as np
import pytest

from glm_jax import config as config_lib
from glm_jax.data import DataSpec
from glm_jax.data.dataset import load_tokenizer
from glm_jax.model.transformer import parameter_count
from glm_jax.tokenizers import TokenizerError
from glm_jax.tokenizers.vocabularies import from_vocabulary
from glm_jax.training import optimizer, setup
from tests.helpers.paths import ROOT

FILES = sorted((ROOT / "configs/pretrain").glob("*.py"))
OURS = {"quickstart", "enwik8", "baseline"}  # of no published model
ASSETS = pathlib.Path(os.environ.get("GLM_JAX_ASSETS", ROOT.parent / "shared")) / "tokenizers"
LR = np.load(ROOT / "tests/golden/lr_schedules.npz")

# Published name and number of parameters: all that are trained, with the padded vocabulary and 2 x (M + 1) positions;
# the head is the word embeddings and counts once. Numbers from the shapes of the original's state dicts.
PUBLISHED = {
    "glm_base": ("110M", 109_338_624),
    "glm_large": ("335M", 334_688_256),
    "glm_doc": ("335M", 334_688_256),
    "glm_sent": ("335M", 334_688_256),
    "glm_410m": ("410M", 410_265_600),
    "glm_515m": ("515M", 514_632_960),
    "glm_roberta_large": ("355M", 354_873_344),
    "glm_large_chinese": ("356M", 355_659_776),
    "glm_2b": ("2B", 1_920_122_880),
    "glm_10b": ("10B", 9_880_682_496),
    "glm_10b_chinese": ("10B", 9_880_682_496 - 256 * 4096),  # 50,048 tokens instead of 50,304
}
VOCABULARY = {"bert": 30592, "roberta": 50304, "gpt2": 50304, "chinese": 50048}
# Which of the original's recorded schedules a file has: (steps, rates) as its own code gave them.
SCHEDULES = {
    ("glm_base", None): "base",
    ("glm_large", None): "large",
    ("glm_large_chinese", None): "large_chinese",
    ("glm_roberta_large", None): "roberta_large",
    ("glm_10b", "first"): "10B",
    ("glm_10b", "longer"): "10B_longer",
    ("glm_10b_chinese", "first"): "10B_chinese",
    ("glm_10b_chinese", "longer"): "10B_chinese_longer",
    **{(name, None): "large" for name in ("glm_doc", "glm_sent", "glm_410m", "glm_515m")},
    ("glm_2b", None): "10B",
}
VARIANTS = {
    "baseline": (
        "masked_lm", "causal_lm,enwik8", "prefix_lm", "sentinels", "fill_in_the_middle", "masked_diffusion,enwik8"
    ),
    "glm_10b": ("first", "longer"),
    "glm_10b_chinese": ("first", "longer"),
}  # fmt: skip
STAGES = [(path.stem, stage) for path in FILES for stage in VARIANTS.get(path.stem, (None,))]


def load(name, stage=None):
    path = ROOT / f"configs/pretrain/{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(stage) if stage else module.get_config()


def test_every_published_model_has_a_file():
    assert {path.stem for path in FILES} == PUBLISHED.keys() | OURS
    assert SCHEDULES.keys() == {stage for stage in STAGES if stage[0] not in OURS}


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_config_builds(name, stage):
    """The whole program from shapes alone: model, optimizer, corruption and step fit each other."""
    config = load(name, stage)
    mesh, rules = setup.check(config)
    schedule = setup.resolve_durations(config, rows=1_000_000)
    size = VOCABULARY.get(config.data.tokenizer.vocabulary, config.data.tokenizer.vocab_size)
    special = setup.SpecialTokens(*range(9))
    run = setup.make_setup(
        config, schedule, mesh, rules, vocab_size=size, special=special, sentence_ends=np.zeros(size, bool)
    )
    rows = config.batch_size // config.grad_accumulation_steps
    shapes = setup.TokenRows(
        tokens=jax.ShapeDtypeStruct((rows, config.data.sequence_length), np.int32),
        lengths=jax.ShapeDtypeStruct((rows,), np.int32),
        index=jax.ShapeDtypeStruct((rows,), np.uint32),
    )
    with run.activate():
        batch = jax.eval_shape(run.corrupt_held_out, shapes)
    slots = len(run.corruption.slots())
    assert batch.tokens.shape == (rows // slots, run.corruption.sequence_length(config.data.sequence_length))
    if name in PUBLISHED:
        label, count = PUBLISHED[name]
        assert parameter_count(run.model.config) == count
        nominal = float(label[:-1]) * {"M": 1e6, "B": 1e9}[label[-1]]
        assert abs(count - nominal) < 0.05 * nominal
        assert run.model.config.vocab_size == config_lib.GLMConfig.named(config.model.size).vocab_size


@pytest.mark.parametrize(("name", "stage"), SCHEDULES)
def test_rates_are_those_of_the_original(name, stage):
    config, golden = load(name, stage), SCHEDULES[name, stage]
    schedule = setup.resolve_durations(config)
    rate = optimizer.schedule(
        config.schedule.name, config.schedule.peak_lr, schedule.decay, warmup=schedule.warmup,
        final_lr_ratio=config.schedule.final_lr_ratio,
    )  # fmt: skip
    factor = 2e-4 / LR["large/args"][0] if golden == "large" else 1.0
    steps = LR[f"{golden}/steps"]
    # Behind its decay the original's linear schedule falls below zero; ours stays.
    ran = steps <= (schedule.decay if config.schedule.name == "linear" else schedule.total)
    assert ran.sum() > 30
    np.testing.assert_allclose(rate(steps[ran]), factor * LR[f"{golden}/lr"][ran], rtol=1e-12, atol=1e-18)
    # The steps that the recorded run took, but where the file says why not.
    assert schedule.total == LR[f"{golden}/args"][4] or stage == "longer"


@pytest.mark.skipif(not ASSETS.is_dir(), reason=f"the released vocabularies are not at {ASSETS}; set GLM_JAX_ASSETS")
@pytest.mark.parametrize(
    "name", ["glm_base", "glm_sent", "glm_roberta_large", "glm_10b", "glm_large_chinese", "glm_10b_chinese"]
)
def test_vocabularies(name, tmp_path):
    config = load(name)
    names = {
        "bert": {"vocab.txt": "bert-large-uncased-vocab.txt"},
        "gpt2": {"vocab.json": "gpt2-vocab.json", "merges.txt": "gpt2-merges.txt"},
        "roberta": {"vocab.json": "roberta-vocab.json", "merges.txt": "roberta-merges.txt"},
        "chinese": {"cog-pretrain.model": "cog-pretrain.model"},
    }[config.data.tokenizer.vocabulary]
    for file, asset in names.items():
        (tmp_path / file).symlink_to(ASSETS / asset)
    config.data.tokenizer.path = str(tmp_path)
    tokenizer = load_tokenizer(DataSpec.from_dict(config.data.to_dict()).tokenizer, [], str(tmp_path))
    assert tokenizer.vocab_size == VOCABULARY[config.data.tokenizer.vocabulary]
    special, corruption = tokenizer.special, setup.corruption_config(config)
    distinct = {special.mask, special.sentence_mask, special.generation_mask}
    assert len(distinct) == (3 if config.data.tokenizer.task_masks else 1)
    assert not corruption.task_masks or config.data.tokenizer.task_masks
    assert (special.block_mask in {c.id for c in tokenizer.commands}) == config.data.tokenizer.block_mask


def test_masks_that_the_vocabulary_lacks_are_refused():
    config = load("glm_2b")
    for key, named in (("task_masks", r"\[gMASK\]"), ("block_mask", r"\[dBLOCK\]")):
        config.data.tokenizer[key] = False
        with pytest.raises(ValueError, match=f"{named}.*data.tokenizer.{key} = True"):
            setup.check(config)
        config.data.tokenizer[key] = True


def test_bad_vocabularies(tmp_path):
    with pytest.raises(TokenizerError, match="unknown vocabulary 'bret'; known: bert, roberta"):
        from_vocabulary("bret", tmp_path)
    with pytest.raises(TokenizerError, match=r"no vocab\.json and no merges\.txt: put the gpt2 vocabulary there"):
        from_vocabulary("gpt2", tmp_path)
    with pytest.raises(TokenizerError, match="fix_command_token=False is for the chinese"):
        from_vocabulary("bert", tmp_path, fix_command_token=False)


def test_the_head_of_each_file_has_its_command_and_hardware():
    for path in FILES:
        head = ast.get_docstring(ast.parse(path.read_text()))
        assert f"configs/pretrain/{path.name}" in head or path.stem == "quickstart"
        assert "Hardware:" in head or "Measured on" in head


def test_an_attention_backend_for_other_devices_is_refused(monkeypatch):
    """Before data is touched, and for the devices of the mesh."""
    config = load("glm_2b")
    for backend, needed in (("flash", "a Hopper GPU"), ("cudnn", "an NVIDIA GPU"), ("splash", "a TPU")):
        config.model.attention_backend = backend
        with pytest.raises(ValueError, match=f"'{backend}' needs {needed}, not 'cpu': choose 'auto'"):
            setup.check(config)
    monkeypatch.setattr("glm_jax.model.attention.traced_device", lambda: types.SimpleNamespace(device_kind="TPU v5"))
    with pytest.raises(ValueError, match=r"set attention_dropout to 0, not 0.1"):
        setup.check(config)
    config.model.attention_dropout = 0.0
    with pytest.raises(ValueError, match=r"set corruption.short_sequence_prob to 0"):
        setup.check(config)
    config.corruption.short_sequence_prob = 0.0
    setup.check(config)
