"""Tiny models of the hub with tokenizers of their own, made without a network."""

import pathlib

KINDS = ("bert", "roberta", "t5", "bart")


def make(kind: str, folder: pathlib.Path, texts: list[str]) -> str:
    """Writes an untrained model of this kind whose vocabulary comes from the texts; returns its path."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = {
        "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        "t5": ["<pad>", "</s>", "<unk>"],
    }.get(kind, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])  # fmt: skip
    unknown = special[1] if kind == "bert" else "<unk>"
    tokenizer = Tokenizer(models.BPE(unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=200, special_tokens=special))
    ids = {token: tokenizer.token_to_id(token) for token in special}
    start, end = {"bert": ("[CLS]", "[SEP]"), "t5": ("", "</s>")}.get(kind, ("<s>", "</s>"))
    pattern = f"{start} $A {end}".strip()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=pattern, special_tokens=[(token, ids[token]) for token in (start, end) if token]
    )
    pad = special[0] if kind in ("bert", "t5") else "<pad>"
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, unk_token=unknown, eos_token=end, cls_token=start or None,
        sep_token=end, model_max_length=64,
    )  # fmt: skip
    size = {"vocab_size": len(fast), "pad_token_id": ids[pad]}
    if kind in ("bert", "roberta"):
        Config, Model = (
            (transformers.BertConfig, transformers.BertForMaskedLM)
            if kind == "bert"
            else (transformers.RobertaConfig, transformers.RobertaForMaskedLM)
        )
        config = Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=66, **size,
        )  # fmt: skip
    elif kind == "t5":
        Model = transformers.T5ForConditionalGeneration
        config = transformers.T5Config(
            d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=ids[pad],
            eos_token_id=ids[end], **size,
        )  # fmt: skip
    else:
        Model = transformers.BartForConditionalGeneration
        config = transformers.BartConfig(
            d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=66, bos_token_id=ids["<s>"],
            eos_token_id=ids[end], decoder_start_token_id=ids[end], forced_eos_token_id=ids[end], **size,
        )  # fmt: skip
    path = folder / kind
    Model(config).save_pretrained(path)
    fast.save_pretrained(path)
    return str(path)
