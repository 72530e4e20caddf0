"""The vocabularies that the releases were trained on, with the command tokens that a run of the original gives them."""

from etils import epath

from glm_jax.tokenizers.base import TokenizerError
from glm_jax.tokenizers.released import ReleasedTokenizer

# Name in a config -> the files that hold the vocabulary, and the releases whose folders on the hub have them.
VOCABULARIES = {
    "bert": (("vocab.txt",), "bert-large-uncased"),
    "roberta": (("vocab.json", "merges.txt"), "roberta-large"),
    "gpt2": (("vocab.json", "merges.txt"), "gpt2, THUDM/glm-10b"),
    "chinese": (("cog-pretrain.model",), "THUDM/glm-10b-chinese"),
}


def from_vocabulary(
    name: str,
    directory,
    *,
    task_masks: bool = False,
    block_mask: bool = False,
    fix_command_token: bool = True,
) -> ReleasedTokenizer:
    """The tokenizer that the original builds for a run.

    Args:
      name: one of VOCABULARIES.
      directory: holds its files.
      task_masks: add [gMASK] and [sMASK] (the original's --task-mask).
      block_mask: add [dBLOCK] (its --block-mask-prob and --context-mask-ratio).
      fix_command_token: `chinese` only; False gives [gMASK] the id of <|endofpiece|>, as 10b-chinese was trained.

    Raises:
      TokenizerError: unknown name; a file is missing, or not that vocabulary.
    """
    from glm_jax.tokenizers import byte_bpe, chinese_sentencepiece, wordpiece

    if name not in VOCABULARIES:
        raise TokenizerError(f"unknown vocabulary {name!r}; known: {', '.join(VOCABULARIES)}")
    if name != "chinese" and not fix_command_token:
        raise TokenizerError(f"fix_command_token=False is for the chinese vocabulary, not for {name}")
    files, where = VOCABULARIES[name]
    directory = epath.Path(directory).expanduser()
    if missing := [file for file in files if not (directory / file).exists()]:
        raise TokenizerError(
            f"{directory} has no {' and no '.join(missing)}: put the {name} vocabulary there (its files are those of "
            f"{where} on the Hugging Face hub), or set data.tokenizer.path to the folder that has it"
        )
    masks = {"task_mask": task_masks, "block_mask": block_mask}
    content = (directory / files[0]).read_bytes()
    if name == "bert":
        return wordpiece.WordPieceTokenizer.from_files(directory, wordpiece.bert_commands(content, **masks))
    if name == "chinese":
        masks["fix_command_token"] = fix_command_token
        commands = chinese_sentencepiece.chinese_commands(content, **masks)
        return chinese_sentencepiece.ChineseSentencePieceTokenizer.from_files(directory, commands)
    commands = (byte_bpe.gpt2_commands if name == "gpt2" else byte_bpe.roberta_commands)(content, **masks)
    return byte_bpe.ByteBPETokenizer.from_files(directory, commands)
