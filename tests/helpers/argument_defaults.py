"""Defaults of the original's command line beside ours: where the same notion exists, equal, or different on purpose."""

# argument -> our key; "large." is the named size, "not " the opposite.
EQUAL = {
    "num_layers": "large.num_layers",
    "hidden_size": "large.hidden_size",
    "num_attention_heads": "large.num_heads",
    "max_position_embeddings": "large.max_position_embeddings",
    "hidden_dropout": "model.hidden_dropout",
    "attention_dropout": "model.attention_dropout",
    "gradient_accumulation_steps": "grad_accumulation_steps",
    "clip_grad": "optimizer.max_grad_norm",
    "adam_beta1": "optimizer.b1",
    "lr_decay_ratio": "schedule.final_lr_ratio",
    "log_interval": "log_every",
    "eval_interval": "eval_every",
    "seq_length": "data.sequence_length",
    "sample_one_document": "data.sample_one_document",
    "non_sentence_start": "data.non_sentence_start",
    "make_vocab_size_divisible_by": "data.tokenizer.pad_vocab_to_multiple_of",
    "gap_sentence_prob": "corruption.sentence",
    "gap_sentence_ratio": "corruption.sentence_ratio",
    "avg_block_length": "corruption.average_span_length",
    "gpt_infill_prob": "corruption.document_suffix_prob",
    "gpt_min_ratio": "corruption.document_min_ratio",
    "short_seq_prob": "corruption.short_sequence_prob",
    "single_span_prob": "corruption.single_span_prob",
    "task_mask": "corruption.task_masks",
    "no_shuffle_block": "not corruption.shuffle_spans",
    "no_block_position": "not corruption.block_positions",
    "block_mask_prob": "corruption.block_mask_prob",
    "context_mask_ratio": "corruption.context_mask_ratio",
    "random_position": "corruption.random_position",
    "masked_lm": "corruption.masked_lm",
}

# argument -> our key, and why it differs
DIFFERENT = {
    "bert_prob": ("corruption.blank_infilling", "the paper's blank infilling; a mixture sets all three"),
    "batch_size": ("batch_size", "per GPU there, per optimizer step here"),
    "lr": ("schedule.peak_lr", "GLM-Base's, Table 7"),
    "lr_decay_style": ("schedule.name", "Table 7"),
    "lr_decay_iters": ("schedule.decay", "the same: all steps"),
    "warmup": ("schedule.warmup", "as in the scripts of GLM-Base and GLM-Large"),
    "weight_decay": ("optimizer.weight_decay", "Table 7"),
    "adam_beta2": ("optimizer.b2", "Table 7"),
    "adam_eps": ("optimizer.eps", "Table 7"),
    "optimizer": ("optimizer.name", "the same: the original's Adam decouples weight decay"),
    "train_iters": ("train_duration", "a run needs at least one step"),
    "save_interval": ("checkpoint_every", "here, saving does not block training"),
    "eval_iters": ("eval_examples", "batches there, rows here"),
    "checkpoint_activations": ("model.remat", "the same, with a choice of what is kept"),
    "fp16": ("model.dtype", "bfloat16 needs no loss scale"),
    "seed": ("seed", "arbitrary"),
    "fix_command_token": ("data.tokenizer.fix_command_token", "otherwise [gMASK] is the end token; see 10b_chinese"),
    "sentinel_token": ("corruption.sentinel_offset", "an offset instead of a switch"),
    "tokenizer_model_type": ("data.tokenizer.vocabulary", "a vocabulary is trained on the text by default"),
    "vocab_size": ("model.vocab_size", "that of the tokenizer"),
}


def ours(key):
    """The value of a key of EQUAL or DIFFERENT in our default config."""
    from glm_jax import config as config_lib

    opposite, key = key.startswith("not "), key.removeprefix("not ")
    if key.startswith("large."):
        return getattr(config_lib.GLMConfig.named("large"), key.removeprefix("large."))
    value = config_lib.pretrain()
    for name in key.split("."):
        value = value[name]
    return not value if opposite else value
