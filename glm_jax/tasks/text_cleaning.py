"""The original's detokenizers, which turn a data set's tokens into running text, and its changes to generated text
before it is compared with references."""

import re

_BRACKETS = {"lrb": "(", "rrb": ")", "lsb": "[", "rsb": "]", "lcb": "{", "rcb": "}"}
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}
_ABBREVIATION = re.compile(r"\b([A-Za-z]) \. ([A-Za-z]) \.")


def detokenize_wikitext(text: str) -> str:
    """WikiText's tokens as running text; <unk> is kept."""
    text = text.replace("s '", "s'")
    for mark in "-,.":
        text = text.replace(f" @{mark}@ ", mark)
    for mark in ":;.!?,":
        text = text.replace(f" {mark} ", f"{mark} ")
    for opened, closed in ("()", "[]", "{}", '""', "''"):
        inner = rf"\{opened}\s*([^\{closed}]*?)\s*\{closed}"
        text = re.sub(inner, lambda match, o=opened, c=closed: f"{o}{match[1]}{c}", text)
    for level in (4, 3, 2):
        text = text.replace(" ".join("=" * level), "=" * level)
    text = text.replace(f" {chr(176)}", chr(176)).replace(" \n", "\n").replace("\n ", "\n")
    return text.replace(" N ", " 1 ").replace(" 's", "'s")


def detokenize_gigaword(text: str) -> str:
    """Gigaword: unknown words, brackets and entities."""
    return _entities(_brackets(re.sub(r"\bUNK\b|<unk>", "[UNK]", text)))


def detokenize_cnn_dm(text: str, *, target: bool = False) -> str:
    """CNN/DailyMail: quotation marks, brackets and contractions; sentences of a target are separated by [SEP]."""
    text = _brackets(text).replace("``", '"').replace("''", '"').replace("`", "'")
    text = text.replace(" n't", "n't")
    text = re.sub(r" '(s|d|ll)\b", r"'\1", text)
    return text.replace("<S_SEP>", "[SEP]" if target else "")


def detokenize_blank(text: str) -> str:
    """The Yahoo infilling texts (Shen et al. 2020): unknown words and blanks."""
    return text.replace("_UNK", "[UNK]").replace("<blank>", "[MASK]")


def fix_tokenization(text: str) -> str:
    """WordPiece's output in the tokens of CNN/DailyMail's references: `` and '' for ", n't, 's, 3,000, u.s., a-b."""
    text = _alternate(re.sub(r"(?<=\w)n ' t\b", " n't", text), '"', "``", "''")
    text = re.sub(r"(?<!\S)' (s|d|ll)\b", r"'\1", text)
    text = _alternate(text, "'", "`", "'")
    text = text.replace(". . .", "...")
    text = re.sub(r"(?<=\d) , (?=\d)", ",", text)
    text = re.sub(r"(?<!\S)(\d+) \. (?=\d+(?!\S))", r"\1.", text)
    text = _ABBREVIATION.sub(r"\1.\2.", text)
    return re.sub(r"(?<=\w) - (?=\w)", "-", text.replace("- -", "--"))


def fix_gigaword(text: str) -> str:
    """WordPiece's output as Gigaword writes unknown words."""
    return text.replace("[UNK]", "UNK")


def fix_squad(text: str) -> str:
    """WordPiece's output as SQuAD's answers are written: 10:30, 3,000.5, a.m, a-b."""
    text = re.sub(r"(?<=\d) ([:,.]) (?=\d)", r"\1", text).replace(" - ", "-")
    return re.sub(r"(?<=\b[A-Za-z]) \. (?=[A-Za-z]\b)", ".", text)


def fix_blank(text: str) -> str:
    """WordPiece's output in the tokens of the infilling references."""
    for apart, joined in (("` `", "``"), ("' '", "''"), ("n ' t", "n't"), (". . .", "..."), ("- -", "--")):
        text = text.replace(apart, joined)
    return _ABBREVIATION.sub(r"\1.\2.", re.sub(r"(?<!')' (s|d|ll|re|ve|m)\b", r"'\1", text))


def _brackets(text):
    return re.sub(r"-([lr][rsc]b)-", lambda match: _BRACKETS[match[1].lower()], text, flags=re.IGNORECASE)


def _entities(text):
    for entity, character in _ENTITIES.items():
        text = text.replace(entity, character)
    return text


def _alternate(text, mark, opened, closed):
    """Marks between spaces: the first opens, the next closes, and so on."""
    count = iter(range(len(text)))
    return re.sub(rf"(?<!\S){re.escape(mark)}(?!\S)", lambda _: closed if next(count) % 2 else opened, text)
