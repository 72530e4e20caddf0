"""Patterns and verbalizers of the original's other classification tasks: news and questions, reviews, GLUE, RACE,
SQuAD, x-stance, and the Chinese CLUE. `a` and `b` are an example's texts where a data set has no names for them."""

# ruff: noqa: RUF001 (Chinese punctuation)

from glm_jax.tasks.patterns_superglue import bare, lower_first
from glm_jax.tasks.prompts import BREAK, MASK, SLOT, P, Prompt, Q


def _topics(first_word, words):
    verbalizer = {str(number): " " + word for number, word in enumerate(words.split(), start=1)}
    patterns = (
        lambda e: [MASK, ":", P(e["a"]), P(e["b"])],
        lambda e: [MASK, first_word, P(e["a"]), P(e["b"])],
        lambda e: [P(e["a"]), "(", MASK, ")", P(e["b"])],
        lambda e: [P(e["a"]), P(e["b"]), "(", MASK, ")"],
        lambda e: ["[ Category:", MASK, "]", P(e["a"]), P(e["b"])],
        lambda e: [MASK, "-", P(e["a"]), P(e["b"])],
    )
    return tuple(Prompt(pattern, verbalizer) for pattern in patterns)


AGNEWS = _topics(" News:", "World Sports Business Tech")
YAHOO = _topics(
    " Question:", "Society Science Health Education Computer Sports Business Entertainment Relationship Politics"
)


def _quoted(end, mark):
    return lambda first, second: lambda e: ['"', P(first(e)), end, BREAK, MASK, mark, P(second(e)), '"']


def _mnli():
    quoted = _quoted('" ?', ', "')(lambda e: bare(e["a"]), lambda e: e["b"])
    plain = lambda e: [P(bare(e["a"])), "?", BREAK, MASK, ",", P(e["b"])]  # noqa: E731
    wrong = {"contradiction": " Wrong", "entailment": " Right", "neutral": " Maybe"}
    no = {"contradiction": " No", "entailment": " Yes", "neutral": " Maybe"}
    return tuple(Prompt(pattern, verbalizer) for verbalizer in (wrong, no) for pattern in (quoted, plain))


MNLI = _mnli()


def _reviews(words):
    verbalizer = {str(number): " " + word for number, word in enumerate(words.split(), start=1)}
    patterns = (
        lambda e: ["It was", MASK, ".", P(e["a"])],
        lambda e: [P(e["a"]), ". All in all, it was", MASK, "."],
        lambda e: ["Just", MASK, "!", BREAK, P(e["a"])],
        lambda e: [P(e["a"]), BREAK, " In summary, the restaurant is", MASK, "."],
    )
    return tuple(Prompt(pattern, verbalizer) for pattern in patterns)


YELP_POLARITY = _reviews("bad good")
YELP_FULL = _reviews("terrible bad okay good great")


def _xstance():
    quoted = _quoted('"', '. "')(lambda e: e["a"], lambda e: e["b"])
    plain = lambda e: [P(e["a"]), BREAK, MASK, ".", P(e["b"])]  # noqa: E731
    words = (("Ja", "Nein"), ("Yes", "No"), ("Oui", "Non"))
    return tuple(
        Prompt(pattern, {"FAVOR": favor, "AGAINST": against}) for favor, against in words for pattern in (quoted, plain)
    )


XSTANCE = _xstance()

SST2 = tuple(
    Prompt(lambda e: [P(e["sentence"]), " It was", MASK, "."], {"0": bad, "1": good})
    for bad, good in ((" terrible", " great"), (" bad", " good"))
)
COLA = (
    Prompt(lambda e: ['"', P(e["sentence"]), '"', " This is", MASK, "."], {"0": " incorrect", "1": " correct"}),
)  # fmt: skip

_NO_YES = {"0": " No", "1": " Yes"}
MRPC = (
    Prompt(lambda e: [P(e["a"]), BREAK, MASK, ", ", P(lower_first(e["b"]))], _NO_YES),
    Prompt(lambda e: [P(e["a"]), BREAK, " Does it mean that", P(lower_first(bare(e["b"]))), "?", MASK], _NO_YES),
)
QQP = (
    Prompt(lambda e: [P(e["a"]), BREAK, " Do you mean ", P(lower_first(e["b"])), MASK, "."], _NO_YES),
    Prompt(lambda e: [P(e["a"]), BREAK, MASK, ", ", P(lower_first(e["b"]))], _NO_YES),
)

_ANSWERED = {"entailment": " Yes", "not_entailment": " No"}
_ASK = "ased on the {} passage, do you know the answer"
QNLI = (
    Prompt(
        lambda e: [
            P(e["sentence"]), " Question:", Q(" " + bare(e["question"])), "? Do you know the answer?", MASK, ".",
        ],
        _ANSWERED,
    ),
    Prompt(
        lambda e: [P(e["sentence"]), " B" + _ASK.format("previous"), Q(" " + bare(e["question"])), "?", MASK, "."],
        _ANSWERED,
    ),
    Prompt(
        lambda e: [
            "B" + _ASK.format("following"), Q(" " + bare(e["question"])), "?", MASK, ".", P(" " + e["sentence"]),
        ],
        _ANSWERED,
    ),
)  # fmt: skip

SQUAD = (Prompt(lambda e: [P(e["context"]), " " + e["question"], MASK, "."], candidates=lambda e: [" " + e["answer"]]),)


def _race(question, blank):
    """`blank` leads in a question that holds its own blank, written _; `question` any other."""

    def pattern(e):
        if "_" not in e["question"]:
            return [P(e["article"]), BREAK, *question(Q(" " + e["question"]))]
        before, after = (" " + e["question"]).split("_", 1)
        return [P(e["article"]), BREAK, *blank, Q(before.rstrip()), MASK, Q(after)]

    return Prompt(pattern, candidates=lambda e: [" " + option for option in e["options"]])


_PASSAGE = " Based on the previous passage,"
RACE = (
    _race(lambda question: [" Question:", question, " Answer:", MASK], []),
    _race(lambda question: [_PASSAGE, question, MASK], [_PASSAGE]),
)

AFQMC = (
    Prompt(lambda e: [P(e["a"]), "？", BREAK, "你是说", P(e["b"]), "？", MASK, "。"], {"0": "不是", "1": "是"}),
    Prompt(lambda e: [P(e["a"]), "？", BREAK, MASK, "，", P(e["b"])], {"0": "不是", "1": "是"}),
)
_TNEWS = {
    "100": "故事", "101": "文化", "102": "娱乐", "103": "体育", "104": "金融", "106": "居家", "107": "汽车",
    "108": "教育", "109": "科技", "110": "军事", "112": "旅游", "113": "世界", "114": "股票", "115": "农业",
    "116": "游戏",
}  # fmt: skip
TNEWS = (Prompt(lambda e: ["标题：", P(e["sentence"]), "关键词：", P(e["keywords"]), "类别：", MASK], _TNEWS),)
CLUEWSC = (
    Prompt(
        lambda e: [SLOT, P(e["text"]), f"代词'*{e['pronoun']}*'", MASK, f"指#{e['target']}#."],
        {"false": "不是", "true": "是"},
    ),
    Prompt(
        lambda e: ["在如下的句子中：", P(e["text"]), f"代词'*{e['pronoun']}*'", MASK, f"指'#{e['target']}#'."],
        {"false": "不是", "true": "是"},
    ),
)

PROMPTS = {
    "agnews": AGNEWS, "yahoo": YAHOO, "mnli": MNLI, "yelp-polarity": YELP_POLARITY, "yelp-full": YELP_FULL,
    "xstance": XSTANCE, "sst2": SST2, "cola": COLA, "mrpc": MRPC, "qqp": QQP, "qnli": QNLI, "squad": SQUAD,
    "race": RACE, "afqmc": AFQMC, "tnews": TNEWS, "cluewsc": CLUEWSC,
}  # fmt: skip
