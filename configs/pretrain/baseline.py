"""Other language models in the place of GLM: the same network, text, steps and batch as another config's.

    python -m glm_jax pretrain --config=configs/pretrain/baseline.py:causal_lm --workdir=runs/quickstart_causal_lm

After the colon stands the objective: masked_lm, causal_lm, prefix_lm, sentinels, fill_in_the_middle or
masked_diffusion; after a comma, if it is not the quickstart, the config that is changed:
configs/pretrain/baseline.py:masked_lm,enwik8 (a file beside this one).

Hardware: as the other config. The losses of different objectives do not compare; what they learned does, by
fine-tuning them on the same task (configs/sweep/objectives.py).
"""

import importlib.util
import pathlib

OBJECTIVES = ("masked_lm", "causal_lm", "prefix_lm", "sentinels", "fill_in_the_middle", "masked_diffusion")
LAYOUTS = {"causal_lm": "causal", "fill_in_the_middle": "causal", "prefix_lm": "prefix", "sentinels": "glm"}


def get_config(choice: str = "masked_lm"):
    """The config that is changed, with another objective."""
    objective, _, name = choice.partition(",")
    if objective not in OBJECTIVES:
        raise ValueError(f"unknown objective {objective!r}; known: {', '.join(OBJECTIVES)}")
    path = pathlib.Path(__file__).with_name(f"{name or 'quickstart'}.py")
    if not path.is_file():
        raise ValueError(f"there is no {path}: name a file beside configs/pretrain/baseline.py, without .py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    for key, value in {"blank_infilling": 1.0, "document": 0.0, "sentence": 0.0}.items():
        config.corruption[key] = value
    config.corruption.pack_objectives = config.corruption.task_masks = False
    config.model.layout = LAYOUTS.get(objective, "masked")
    if objective == "masked_lm":  # BERT's: 15 % of the tokens, each by itself, and always replaced by the mask
        config.corruption.masked_lm = True
        config.corruption.mask_ratio, config.corruption.max_span_length = 0.15, 1
    elif objective == "sentinels":  # T5's, as the paper's ablation has it: a mask and a start of its own for each span
        config.corruption.sentinel_offset = config.data.tokenizer.vocab_size
        config.model.vocab_size = config.data.tokenizer.vocab_size + 128
    else:
        config.corruption.mask_ratio = 0.15
        config.corruption.baseline = objective
    return config
