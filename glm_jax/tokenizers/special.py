"""The ids that GLM's objectives and prompts need from any vocabulary."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Ids of GLM's command tokens.

    `eos` closes a document, `cls` opens one; `mask`, `sentence_mask` and `generation_mask` are the three blanks
    ([MASK], [sMASK], [gMASK]); `start` and `end` open and close an answer in Part B (<|startofpiece|> and
    <|endofpiece|>, the paper's [START] and [END]); `block_mask` is [dBLOCK], which hides context in an ablation.
    """

    pad: int
    eos: int
    cls: int
    mask: int
    sentence_mask: int
    generation_mask: int
    start: int
    end: int
    block_mask: int


# Field of SpecialTokens -> GLM's token string for it.
SPECIAL_STRINGS = {
    "pad": "[PAD]",
    "eos": "<|endoftext|>",
    "cls": "[CLS]",
    "mask": "[MASK]",
    "sentence_mask": "[sMASK]",
    "generation_mask": "[gMASK]",
    "start": "<|startofpiece|>",
    "end": "<|endofpiece|>",
    "block_mask": "[dBLOCK]",
}
