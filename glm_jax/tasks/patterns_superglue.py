"""Patterns and verbalizers of SuperGLUE (Wang et al. 2019), every pattern id of the original.

Spaces are part of the strings: a word in the middle of a text begins with one, which byte-level BPE and SentencePiece
need and WordPiece does not see. Table 8 of the paper uses pattern 0 of each task.
"""

import string

from glm_jax.tasks.prompts import BREAK, MASK, SLOT, P, Prompt, Q


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
            return [SLOT, '"', P(claim), '" ?', BREAK, SLOT, MASK, mark, SLOT, *space, P(text), '"']

        return pattern

    def plain(mark):
        return lambda e: [SLOT, P(bare(e[second])), "?", BREAK, SLOT, MASK, mark, SLOT, P(" " + e[first])]

    return [quoted(",", [' "']), plain(","), quoted('. "', []), plain(".")]


def true_or_false(question: str, first: str = "premise", second: str = "hypothesis"):
    """Pattern 4 of RTE and CB."""
    return lambda e: [
        SLOT, P(e[first]), SLOT, " question:", Q(" " + bare(e[second])), question, SLOT, " answer:", MASK,
    ]  # fmt: skip


_YES_NO = {"entailment": " Yes", "not_entailment": " No"}


def _rte(first="premise", second="hypothesis"):
    last = true_or_false(" True or False?", first, second)
    return (
        *(Prompt(pattern, _YES_NO) for pattern in entailment(first, second)),
        Prompt(last, {"entailment": " true", "not_entailment": " false"}),
    )


RTE = _rte()
AX_B = _rte("sentence1", "sentence2")

_MAYBE = {"entailment": " Yes", "contradiction": " No", "neutral": " Maybe"}
CB = (
    *(Prompt(pattern, _MAYBE) for pattern in entailment()),
    Prompt(
        true_or_false(" true, false or neither?"),
        {"entailment": " true", "contradiction": " false", "neutral": " neither"},
    ),
)

_NO_YES, _FALSE_TRUE = {"false": " No", "true": " Yes"}, {"false": " false", "true": " true"}
BOOLQ = tuple(
    Prompt(pattern, verbalizer)
    for pattern in (
        lambda e: [SLOT, P(e["passage"]), SLOT, " Question:", Q(" " + e["question"]), "? Answer:", SLOT, MASK, "."],
        lambda e: [
            SLOT, P(e["passage"]), " Based on the previous passage,", SLOT, Q(" " + e["question"]), "?", SLOT, MASK,
            ".",
        ],
        lambda e: [
            "Based on the following passage", SLOT, Q(" " + e["question"]), "?", SLOT, MASK, ".", SLOT,
            P(" " + e["passage"]),
        ],
    )
    for verbalizer in (_NO_YES, _FALSE_TRUE)
)  # fmt: skip

_BINARY = {"0": " No", "1": " Yes"}
_ASK = (SLOT, " Question:", "QUESTION", "?", SLOT)


def _multirc(*parts, before=()):
    def pattern(e):
        filled = {"QUESTION": " " + bare(e["question"]), "ANSWER": e["answer"], " ANSWER": " " + e["answer"]}
        return [*before, P(bare(e["passage"])), *(filled.get(part, part) for part in parts)]

    return pattern


MULTIRC = (
    Prompt(_multirc(".", *_ASK, " Is it", " ANSWER", "?", SLOT, MASK, "."), _BINARY),
    Prompt(_multirc(".", *_ASK, ' Is the correct answer "', "ANSWER", '"?', SLOT, MASK, "."), _BINARY),
    Prompt(
        _multirc(
            ". Based on the previous passage,", SLOT, "QUESTION", "?", SLOT, ' Is "', "ANSWER", '" a correct answer?',
            SLOT, MASK, ".",
        ),
        _BINARY,
    ),
    Prompt(
        _multirc(SLOT, "QUESTION", "- [", MASK, "]", SLOT, "ANSWER", before=(SLOT,)), {"0": " False", "1": " True"}
    ),
    Prompt(_multirc(".", *_ASK, " ANSWER", "?", SLOT, MASK, "."), _BINARY),
)  # fmt: skip

WIC = (
    Prompt(
        lambda e: [
            SLOT, P(f'"{e["sentence1"]}" / "{e["sentence2"]}"'), SLOT, f' Similar sense of "{e["word"]}"?', SLOT, MASK,
            ".",
        ],
        _NO_YES,
    ),
    Prompt(
        lambda e: [
            SLOT, P(e["sentence1"]), SLOT, P(" " + e["sentence2"]), SLOT,
            f" Does {e['word']} have the same meaning in both sentences?", SLOT, MASK,
        ],
        _NO_YES,
    ),
    Prompt(
        lambda e: [
            SLOT, e["word"], " .", SLOT, ' Sense (1) (a) "', P(e["sentence1"]), '"', SLOT, " (", MASK, ') "',
            e["sentence2"], '"',
        ],
        {"false": "2", "true": "b"},
    ),
)  # fmt: skip

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
    return [*_copa_quoted(e), P(bare(e["premise"])), MASK, " " + copa_choices(e)[choice]]


def _copa_listed(e):
    first, second = copa_choices(e)
    premise = [P(" " + bare(e["premise"])), _JOINER[e["question"]]]
    return [SLOT, first, " or", " " + second, "?", SLOT, *premise, SLOT, MASK, "."]


COPA = (
    Prompt(
        lambda e: [
            SLOT, *_copa_quoted(e), SLOT, P(" " + bare(e["premise"])), _JOINER[e["question"]], SLOT, MASK, ".",
        ],
        candidates=_copa_answers,
    ),
    Prompt(_copa_listed, candidates=_copa_answers),
    Prompt(
        _copa_connective,
        candidates=lambda e: [_JOINER[e["question"]].replace(", so", " so")] * 2,
        per_candidate=True,
    ),
)  # fmt: skip
# What the original puts in the place of pattern 2 where soft prompts are used.
COPA_SOFT_2 = Prompt(
    lambda e: [
        SLOT, *_copa_quoted(e, '"'), SLOT, P(" " + bare(e["premise"])), _JOINER[e["question"]], MASK, ".", SLOT,
    ],
    candidates=_copa_answers,
)  # fmt: skip


def _wsc(*parts):
    def pattern(e):
        marked = f"'*{e['pronoun']}*'"
        return [SLOT, P(e["text"]), *(part.replace("PRONOUN", marked) if type(part) is str else part for part in parts)]

    return Prompt(pattern, candidates=lambda e: [" " + e["span"], *(" " + other for other in e["candidates"])])


WSC = (
    _wsc(SLOT, " The pronoun PRONOUN refers to", SLOT, MASK, "."),
    _wsc(SLOT, " In the previous sentence, the pronoun PRONOUN refers to", SLOT, MASK, "."),
    _wsc(SLOT, " Question: In the passage above, what does the pronoun PRONOUN refer to?", SLOT, " Answer:", MASK, "."),
)


def _record(e):
    before, after = e["query"].split("@placeholder", 1)
    return [P(e["passage"]), " " + before.rstrip(), MASK, after]


RECORD = (Prompt(_record, candidates=lambda e: [" " + entity for entity in e["candidates"]], soft_prompts=False),)

PROMPTS = {
    "rte": RTE, "ax-g": RTE, "ax-b": AX_B, "cb": CB, "boolq": BOOLQ, "multirc": MULTIRC, "wic": WIC, "copa": COPA,
    "wsc": WSC, "record": RECORD,
}  # fmt: skip
