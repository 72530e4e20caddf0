"""How filled text looks: in a terminal with its answers in brackets, in a notebook with probabilities in colour."""

import html
import math
from typing import Any

_SPACE = "\u2581"  # SentencePiece's mark of a space


def as_text(filled: Any) -> str:
    """The text with its answers in brackets; with token probabilities, a line a blank below it."""
    parts, at = [], 0
    for start, stop in filled.spans:
        parts += [filled.text[at:start], " " * (filled.text[start:stop][:1] == " "), "["]
        parts += [filled.text[start:stop].strip(), "]"]
        at = stop
    lines = ["".join([*parts, filled.text[at:]])]
    for number, tokens in enumerate(filled.tokens or (), 1):
        words = [f"{readable(each.token)} {math.exp(each.log_prob):.2f} ({_others(each)})" for each in tokens]
        lines.append(f"  blank {number}: " + " | ".join(words))
    return "\n".join(lines)


def as_html(filled: Any) -> str:
    """The text as HTML: the surer a token, the greener; its alternatives show under the pointer. No script."""
    parts, at = [], 0
    for number, (start, stop) in enumerate(filled.spans):
        parts.append(html.escape(filled.text[at:start]))
        if filled.tokens is None:
            probability = math.exp(min(filled.scores[number], 0.0))
            title = f"log-probability of the answer {filled.scores[number]:.2f}"
            parts.append(_mark(filled.text[start:stop], probability, title))
        else:
            for each in filled.tokens[number]:
                probability = math.exp(each.log_prob)
                title = f"{readable(each.token)} {probability:.2f}\n{_others(each, chr(10))}"
                parts.append(_mark(each.text, probability, title))
        at = stop
    parts.append(html.escape(filled.text[at:]))
    return f'<p style="line-height: 1.9; white-space: pre-wrap">{"".join(parts)}</p>'


def readable(token: str) -> str:
    """A token without the mark of a space before it."""
    return token.replace(_SPACE, " ").strip() or token


def _others(token, separator=", "):
    return separator.join(f"{readable(name)} {math.exp(value):.2f}" for name, value in token.alternatives)


def _mark(text, probability, title):
    hue = round(120 * probability)  # red to green; the text stays black, and the number stands in the title
    style = f"background: hsl({hue}, 70%, 85%); color: #111; border-radius: 3px; padding: 1px 0"
    return f'<span style="{style}" title="{html.escape(title)}">{html.escape(text)}</span>'
