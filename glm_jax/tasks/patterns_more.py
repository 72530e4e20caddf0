"""Patterns and verbalizers of the original's other classification tasks: news and questions, reviews, GLUE, RACE,
SQuAD, x-stance, and the Chinese CLUE. `a` and `b` are an example's texts where a data set has no names for them."""

# ruff: noqa: RUF001 (Chinese punctuation)

from glm_jax.tasks.patterns_superglue import bare, lower_first
from glm_jax.tasks.templates import MASK, SEGMENT_BREAK, SOFT_PROMPT, Template, Truncatable, TruncateLast


def _topics(first_word, words):
    verbalizer = {str(number): " " + word for number, word in enumerate(words.split(), start=1)}
    patterns = (
        lambda e: [MASK, ":", Truncatable(e["a"]), Truncatable(e["b"])],
        lambda e: [MASK, first_word, Truncatable(e["a"]), Truncatable(e["b"])],
        lambda e: [Truncatable(e["a"]), "(", MASK, ")", Truncatable(e["b"])],
        lambda e: [Truncatable(e["a"]), Truncatable(e["b"]), "(", MASK, ")"],
        lambda e: ["[ Category:", MASK, "]", Truncatable(e["a"]), Truncatable(e["b"])],
        lambda e: [MASK, "-", Truncatable(e["a"]), Truncatable(e["b"])],
    )
    return tuple(Template(pattern, verbalizer) for pattern in patterns)


AGNEWS = _topics(" News:", "World Sports Business Tech")
YAHOO = _topics(
    " Question:", "Society Science Health Education Computer Sports Business Entertainment Relationship Politics"
)


def _quoted(end, mark):
    return lambda first, second: (
        lambda e: ['"', Truncatable(first(e)), end, SEGMENT_BREAK, MASK, mark, Truncatable(second(e)), '"']
    )


def _mnli():
    quoted = _quoted('" ?', ', "')(lambda e: bare(e["a"]), lambda e: e["b"])
    plain = lambda e: [Truncatable(bare(e["a"])), "?", SEGMENT_BREAK, MASK, ",", Truncatable(e["b"])]  # noqa: E731
    wrong = {"contradiction": " Wrong", "entailment": " Right", "neutral": " Maybe"}
    no = {"contradiction": " No", "entailment": " Yes", "neutral": " Maybe"}
    return tuple(Template(pattern, verbalizer) for verbalizer in (wrong, no) for pattern in (quoted, plain))


MNLI = _mnli()


def _reviews(words):
    verbalizer = {str(number): " " + word for number, word in enumerate(words.split(), start=1)}
    patterns = (
        lambda e: ["It was", MASK, ".", Truncatable(e["a"])],
        lambda e: [Truncatable(e["a"]), ". All in all, it was", MASK, "."],
        lambda e: ["Just", MASK, "!", SEGMENT_BREAK, Truncatable(e["a"])],
        lambda e: [Truncatable(e["a"]), SEGMENT_BREAK, " In summary, the restaurant is", MASK, "."],
    )
    return tuple(Template(pattern, verbalizer) for pattern in patterns)


YELP_POLARITY = _reviews("bad good")
YELP_FULL = _reviews("terrible bad okay good great")


def _xstance():
    quoted = _quoted('"', '. "')(lambda e: e["a"], lambda e: e["b"])
    plain = lambda e: [Truncatable(e["a"]), SEGMENT_BREAK, MASK, ".", Truncatable(e["b"])]  # noqa: E731
    words = (("Ja", "Nein"), ("Yes", "No"), ("Oui", "Non"))
    return tuple(
        Template(pattern, {"FAVOR": favor, "AGAINST": against})
        for favor, against in words
        for pattern in (quoted, plain)
    )


XSTANCE = _xstance()

SST2 = tuple(
    Template(lambda e: [Truncatable(e["sentence"]), " It was", MASK, "."], {"0": bad, "1": good})
    for bad, good in ((" terrible", " great"), (" bad", " good"))
)
COLA = (
    Template(
        lambda e: ['"', Truncatable(e["sentence"]), '"', " This is", MASK, "."], {"0": " incorrect", "1": " correct"}
    ),
)

_NO_YES = {"0": " No", "1": " Yes"}
MRPC = (
    Template(lambda e: [Truncatable(e["a"]), SEGMENT_BREAK, MASK, ", ", Truncatable(lower_first(e["b"]))], _NO_YES),
    Template(
        lambda e: [
            Truncatable(e["a"]),
            SEGMENT_BREAK,
            " Does it mean that",
            Truncatable(lower_first(bare(e["b"]))),
            "?",
            MASK,
        ],
        _NO_YES,
    ),
)
QQP = (
    Template(
        lambda e: [Truncatable(e["a"]), SEGMENT_BREAK, " Do you mean ", Truncatable(lower_first(e["b"])), MASK, "."],
        _NO_YES,
    ),
    Template(lambda e: [Truncatable(e["a"]), SEGMENT_BREAK, MASK, ", ", Truncatable(lower_first(e["b"]))], _NO_YES),
)

_ANSWERED = {"entailment": " Yes", "not_entailment": " No"}
_ASK = "ased on the {} passage, do you know the answer"
QNLI = (
    Template(
        lambda e: [
            Truncatable(e["sentence"]),
            " Question:",
            TruncateLast(" " + bare(e["question"])),
            "? Do you know the answer?",
            MASK,
            ".",
        ],
        _ANSWERED,
    ),
    Template(
        lambda e: [
            Truncatable(e["sentence"]),
            " B" + _ASK.format("previous"),
            TruncateLast(" " + bare(e["question"])),
            "?",
            MASK,
            ".",
        ],
        _ANSWERED,
    ),
    Template(
        lambda e: [
            "B" + _ASK.format("following"),
            TruncateLast(" " + bare(e["question"])),
            "?",
            MASK,
            ".",
            Truncatable(" " + e["sentence"]),
        ],
        _ANSWERED,
    ),
)

SQUAD = (
    Template(
        lambda e: [Truncatable(e["context"]), " " + e["question"], MASK, "."], candidates=lambda e: [" " + e["answer"]]
    ),
)


def _race(question, blank):
    """`blank` leads in a question that holds its own blank, written _; `question` any other."""

    def pattern(e):
        if "_" not in e["question"]:
            return [Truncatable(e["article"]), SEGMENT_BREAK, *question(TruncateLast(" " + e["question"]))]
        before, after = (" " + e["question"]).split("_", 1)
        return [
            Truncatable(e["article"]),
            SEGMENT_BREAK,
            *blank,
            TruncateLast(before.rstrip()),
            MASK,
            TruncateLast(after),
        ]

    return Template(pattern, candidates=lambda e: [" " + option for option in e["options"]])


_PASSAGE = " Based on the previous passage,"
RACE = (
    _race(lambda question: [" Question:", question, " Answer:", MASK], []),
    _race(lambda question: [_PASSAGE, question, MASK], [_PASSAGE]),
)

AFQMC = (
    Template(
        lambda e: [Truncatable(e["a"]), "？", SEGMENT_BREAK, "你是说", Truncatable(e["b"]), "？", MASK, "。"],
        {"0": "不是", "1": "是"},
    ),
    Template(
        lambda e: [Truncatable(e["a"]), "？", SEGMENT_BREAK, MASK, "，", Truncatable(e["b"])], {"0": "不是", "1": "是"}
    ),
)
_TNEWS = {
    "100": "故事",
    "101": "文化",
    "102": "娱乐",
    "103": "体育",
    "104": "金融",
    "106": "居家",
    "107": "汽车",
    "108": "教育",
    "109": "科技",
    "110": "军事",
    "112": "旅游",
    "113": "世界",
    "114": "股票",
    "115": "农业",
    "116": "游戏",
}
TNEWS = (
    Template(
        lambda e: ["标题：", Truncatable(e["sentence"]), "关键词：", Truncatable(e["keywords"]), "类别：", MASK], _TNEWS
    ),
)
CLUEWSC = (
    Template(
        lambda e: [SOFT_PROMPT, Truncatable(e["text"]), f"代词'*{e['pronoun']}*'", MASK, f"指#{e['target']}#."],
        {"false": "不是", "true": "是"},
    ),
    Template(
        lambda e: [
            "在如下的句子中：",
            Truncatable(e["text"]),
            f"代词'*{e['pronoun']}*'",
            MASK,
            f"指'#{e['target']}#'.",
        ],
        {"false": "不是", "true": "是"},
    ),
)

TEMPLATES = {
    "agnews": AGNEWS,
    "yahoo": YAHOO,
    "mnli": MNLI,
    "yelp-polarity": YELP_POLARITY,
    "yelp-full": YELP_FULL,
    "xstance": XSTANCE,
    "sst2": SST2,
    "cola": COLA,
    "mrpc": MRPC,
    "qqp": QQP,
    "qnli": QNLI,
    "squad": SQUAD,
    "race": RACE,
    "afqmc": AFQMC,
    "tnews": TNEWS,
    "cluewsc": CLUEWSC,
}
