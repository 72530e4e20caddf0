"""Patterns and verbalizers of SuperGLUE (Wang et al. 2019), every pattern id of the original.

Spaces are part of the strings: a word in the middle of a text begins with one, which byte-level BPE and SentencePiece
need and WordPiece does not see. Table 8 of the paper uses pattern 0 of each task.
"""

import string

from glm_jax.tasks.templates import MASK, SEGMENT_BREAK, SOFT_PROMPT, Template, Truncatable, TruncateLast


def bare(text: str) -> str:
    """Text without its final punctuation."""
    return text.rstrip(string.punctuation)


def lower_first(text: str) -> str:
    """Text with its first letter in lower case."""
    return text[:1].lower() + text[1:]


def entailment(first: str = "premise", second: str = "hypothesis") -> list:
    """The four patterns that RTE, CB and the diagnostics share."""

    def quoted(mark, space):
        def pattern(e):
            claim, text = bare(e[second]), e[first]
            return [
                SOFT_PROMPT,
                '"',
                Truncatable(claim),
                '" ?',
                SEGMENT_BREAK,
                SOFT_PROMPT,
                MASK,
                mark,
                SOFT_PROMPT,
                *space,
                Truncatable(text),
                '"',
            ]

        return pattern

    def plain(mark):
        return lambda e: [
            SOFT_PROMPT,
            Truncatable(bare(e[second])),
            "?",
            SEGMENT_BREAK,
            SOFT_PROMPT,
            MASK,
            mark,
            SOFT_PROMPT,
            Truncatable(" " + e[first]),
        ]

    return [quoted(",", [' "']), plain(","), quoted('. "', []), plain(".")]


def true_or_false(question: str, first: str = "premise", second: str = "hypothesis"):
    """Pattern 4 of RTE and CB."""
    return lambda e: [
        SOFT_PROMPT,
        Truncatable(e[first]),
        SOFT_PROMPT,
        " question:",
        TruncateLast(" " + bare(e[second])),
        question,
        SOFT_PROMPT,
        " answer:",
        MASK,
    ]


_YES_NO = {"entailment": " Yes", "not_entailment": " No"}


def _rte(first="premise", second="hypothesis"):
    last = true_or_false(" True or False?", first, second)
    return (
        *(Template(pattern, _YES_NO) for pattern in entailment(first, second)),
        Template(last, {"entailment": " true", "not_entailment": " false"}),
    )


RTE = _rte()
AX_B = _rte("sentence1", "sentence2")

_MAYBE = {"entailment": " Yes", "contradiction": " No", "neutral": " Maybe"}
CB = (
    *(Template(pattern, _MAYBE) for pattern in entailment()),
    Template(
        true_or_false(" true, false or neither?"),
        {"entailment": " true", "contradiction": " false", "neutral": " neither"},
    ),
)

_NO_YES, _FALSE_TRUE = {"false": " No", "true": " Yes"}, {"false": " false", "true": " true"}
BOOLQ = tuple(
    Template(pattern, verbalizer)
    for pattern in (
        lambda e: [
            SOFT_PROMPT,
            Truncatable(e["passage"]),
            SOFT_PROMPT,
            " Question:",
            TruncateLast(" " + e["question"]),
            "? Answer:",
            SOFT_PROMPT,
            MASK,
            ".",
        ],
        lambda e: [
            SOFT_PROMPT,
            Truncatable(e["passage"]),
            " Based on the previous passage,",
            SOFT_PROMPT,
            TruncateLast(" " + e["question"]),
            "?",
            SOFT_PROMPT,
            MASK,
            ".",
        ],
        lambda e: [
            "Based on the following passage",
            SOFT_PROMPT,
            TruncateLast(" " + e["question"]),
            "?",
            SOFT_PROMPT,
            MASK,
            ".",
            SOFT_PROMPT,
            Truncatable(" " + e["passage"]),
        ],
    )
    for verbalizer in (_NO_YES, _FALSE_TRUE)
)

_BINARY = {"0": " No", "1": " Yes"}
_ASK = (SOFT_PROMPT, " Question:", "QUESTION", "?", SOFT_PROMPT)


def _multirc(*parts, before=()):
    def pattern(e):
        filled = {"QUESTION": " " + bare(e["question"]), "ANSWER": e["answer"], " ANSWER": " " + e["answer"]}
        return [*before, Truncatable(bare(e["passage"])), *(filled.get(part, part) for part in parts)]

    return pattern


MULTIRC = (
    Template(_multirc(".", *_ASK, " Is it", " ANSWER", "?", SOFT_PROMPT, MASK, "."), _BINARY),
    Template(_multirc(".", *_ASK, ' Is the correct answer "', "ANSWER", '"?', SOFT_PROMPT, MASK, "."), _BINARY),
    Template(
        _multirc(
            ". Based on the previous passage,",
            SOFT_PROMPT,
            "QUESTION",
            "?",
            SOFT_PROMPT,
            ' Is "',
            "ANSWER",
            '" a correct answer?',
            SOFT_PROMPT,
            MASK,
            ".",
        ),
        _BINARY,
    ),
    Template(
        _multirc(SOFT_PROMPT, "QUESTION", "- [", MASK, "]", SOFT_PROMPT, "ANSWER", before=(SOFT_PROMPT,)),
        {"0": " False", "1": " True"},
    ),
    Template(_multirc(".", *_ASK, " ANSWER", "?", SOFT_PROMPT, MASK, "."), _BINARY),
)

WIC = (
    Template(
        lambda e: [
            SOFT_PROMPT,
            Truncatable(f'"{e["sentence1"]}" / "{e["sentence2"]}"'),
            SOFT_PROMPT,
            f' Similar sense of "{e["word"]}"?',
            SOFT_PROMPT,
            MASK,
            ".",
        ],
        _NO_YES,
    ),
    Template(
        lambda e: [
            SOFT_PROMPT,
            Truncatable(e["sentence1"]),
            SOFT_PROMPT,
            Truncatable(" " + e["sentence2"]),
            SOFT_PROMPT,
            f" Does {e['word']} have the same meaning in both sentences?",
            SOFT_PROMPT,
            MASK,
        ],
        _NO_YES,
    ),
    Template(
        lambda e: [
            SOFT_PROMPT,
            e["word"],
            " .",
            SOFT_PROMPT,
            ' Sense (1) (a) "',
            Truncatable(e["sentence1"]),
            '"',
            SOFT_PROMPT,
            " (",
            MASK,
            ') "',
            e["sentence2"],
            '"',
        ],
        {"false": "2", "true": "b"},
    ),
)

_JOINER = {"cause": " because", "effect": ", so"}


def copa_choices(e) -> tuple[str, str]:
    """The two choices without final punctuation, beginning in lower case."""
    return lower_first(bare(e["choice1"])), lower_first(bare(e["choice2"]))


def _copa_answers(e):
    return [" " + choice for choice in copa_choices(e)]


def _copa_quoted(e, end='"?'):
    first, second = copa_choices(e)
    return ['"', first, '" or "', second, end]


def _copa_connective(e, choice):
    """Which connective fits between premise and choice is asked of each choice, and the more certain one wins."""
    return [*_copa_quoted(e), Truncatable(bare(e["premise"])), MASK, " " + copa_choices(e)[choice]]


def _copa_listed(e):
    first, second = copa_choices(e)
    premise = [Truncatable(" " + bare(e["premise"])), _JOINER[e["question"]]]
    return [SOFT_PROMPT, first, " or", " " + second, "?", SOFT_PROMPT, *premise, SOFT_PROMPT, MASK, "."]


COPA = (
    Template(
        lambda e: [
            SOFT_PROMPT,
            *_copa_quoted(e),
            SOFT_PROMPT,
            Truncatable(" " + bare(e["premise"])),
            _JOINER[e["question"]],
            SOFT_PROMPT,
            MASK,
            ".",
        ],
        candidates=_copa_answers,
    ),
    Template(_copa_listed, candidates=_copa_answers),
    Template(
        _copa_connective,
        candidates=lambda e: [_JOINER[e["question"]].replace(", so", " so")] * 2,
        per_candidate=True,
    ),
)
# What the original puts in the place of pattern 2 where soft prompts are used.
COPA_SOFT_2 = Template(
    lambda e: [
        SOFT_PROMPT,
        *_copa_quoted(e, '"'),
        SOFT_PROMPT,
        Truncatable(" " + bare(e["premise"])),
        _JOINER[e["question"]],
        MASK,
        ".",
        SOFT_PROMPT,
    ],
    candidates=_copa_answers,
)


def _wsc(*parts):
    def pattern(e):
        marked = f"'*{e['pronoun']}*'"
        return [
            SOFT_PROMPT,
            Truncatable(e["text"]),
            *(part.replace("PRONOUN", marked) if type(part) is str else part for part in parts),
        ]

    return Template(pattern, candidates=lambda e: [" " + e["span"], *(" " + other for other in e["candidates"])])


WSC = (
    _wsc(SOFT_PROMPT, " The pronoun PRONOUN refers to", SOFT_PROMPT, MASK, "."),
    _wsc(SOFT_PROMPT, " In the previous sentence, the pronoun PRONOUN refers to", SOFT_PROMPT, MASK, "."),
    _wsc(
        SOFT_PROMPT,
        " Question: In the passage above, what does the pronoun PRONOUN refer to?",
        SOFT_PROMPT,
        " Answer:",
        MASK,
        ".",
    ),
)


def _record(e):
    before, after = e["query"].split("@placeholder", 1)
    return [Truncatable(e["passage"]), " " + before.rstrip(), MASK, after]


RECORD = (Template(_record, candidates=lambda e: [" " + entity for entity in e["candidates"]], soft_prompts=False),)

TEMPLATES = {
    "rte": RTE,
    "ax-g": RTE,
    "ax-b": AX_B,
    "cb": CB,
    "boolq": BOOLQ,
    "multirc": MULTIRC,
    "wic": WIC,
    "copa": COPA,
    "wsc": WSC,
    "record": RECORD,
}
