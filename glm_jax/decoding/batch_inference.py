"""Prompts from the command line, from a file, or typed one after another."""

import json
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

from glm_jax.decoding.api import Filled, fill, generate, stream
from glm_jax.decoding.decoder import Decoder
from glm_jax.decoding.prompts import PromptError, has_blank
from glm_jax.tokenizers.base import MASK_WORDS

logger = logging.getLogger(__name__)

_ANSWERS_AT_ONCE = 8  # batches between two writes of a file
_SEED_STRIDE = 1_000_003  # prompts that one seed serves before the next one's draws begin


def complete(
    run: Any, prompts: list[str], *, seed: int | list[int] = 0, order="left-to-right",
    unidirectional: bool = False, **options,
) -> list[Filled]:  # fmt: skip
    """Fills the prompts that have a blank, and continues those that have none; `options` as for both."""
    seeds = [seed * _SEED_STRIDE + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
    blank = [has_blank(prompt) for prompt in prompts]
    if unidirectional and any(blank):
        raise PromptError("--unidirectional continues plain text: leave out the masks")
    found: dict[int, Filled] = {}
    for kind, do, extra in ((True, fill, {"order": order}), (False, generate, {"unidirectional": unidirectional})):
        rows = [i for i, is_blank in enumerate(blank) if is_blank == kind]
        if rows:
            texts, own = [prompts[i] for i in rows], [seeds[i] for i in rows]
            found |= dict(zip(rows, do(run, texts, seed=own, **extra, **options), strict=True))
    return [found[i] for i in range(len(prompts))]


def as_dict(filled: Filled) -> dict:
    """What a line of the output file holds."""
    found = {"text": filled.text, "answers": list(filled.answers), "scores": list(filled.scores)}
    if filled.alternatives:
        found["alternatives"] = [as_dict(other) for other in filled.alternatives]
    return found


def answer_file(
    run: Any, source: os.PathLike | str, target: os.PathLike | str, *, batch_size: int = 16, **options
) -> int:
    """Answers a jsonl file ({"prompt": …} a line, other keys are kept) line by line into another; returns how many.

    What `target` already holds is not done again: an interrupted run goes on, and a line that was cut is replaced.
    Raises PromptError for a malformed line, naming it, before anything is answered, and for a `target` whose lines
    belong to other prompts.
    """
    if batch_size < 1:
        raise PromptError(f"batch_size {batch_size}: give at least 1")
    source, target = pathlib.Path(source), pathlib.Path(target)
    records = _read_prompts(source)
    done = _answered(target, records)
    if done:
        logger.info("%s: %d of %d prompts are answered already", target, done, len(records))
    seed = options.pop("seed", 0)
    began, size = time.perf_counter(), batch_size * _ANSWERS_AT_ONCE
    with target.open("a", encoding="utf-8") as file:
        # From where the portion that was cut began: the same prompts share a batch, so every digit is the same.
        for at in range(done // size * size if done < len(records) else done, len(records), size):
            rows = records[at : at + size]
            # A prompt draws by its number in the file, so that a resumed run writes what one run would have written.
            seeds = [seed * _SEED_STRIDE + at + i for i in range(len(rows))]
            found = complete(run, [row["prompt"] for row in rows], batch_size=batch_size, seed=seeds, **options)
            for row, filled in list(zip(rows, found, strict=True))[max(done - at, 0) :]:
                file.write(json.dumps(row | as_dict(filled), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            written = at + len(rows)
            rate = (written - done) / (time.perf_counter() - began)
            left = (len(records) - written) / rate
            logger.info("%d of %d prompts, %.1f a second, %.0f s left", written, len(records), rate, left)
    return len(records) - done


def _read_prompts(path) -> list[dict]:
    if not path.is_file():
        raise PromptError(f"{path} is no file: --prompts takes a jsonl file with a prompt a line")
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:  # also bytes that are no UTF-8
            raise PromptError(f"{path}:{number} is not JSON ({error})") from None
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str) or not record["prompt"].strip():
            raise PromptError(f'{path}:{number} has no prompt: a line looks like {{"prompt": "… [MASK] …"}}')
        if taken := sorted({"text", "answers", "scores", "alternatives"} & set(record)):
            raise PromptError(f"{path}:{number} has the key {taken[0]!r}, under which the result is written: rename it")
        records.append(record)
    if not records:
        raise PromptError(f"{path} holds no prompt")
    return records


def _answered(path, records) -> int:
    """Lines of `path` that are whole; what follows the last whole line is cut off."""
    if not path.exists():
        return 0
    whole = path.read_bytes()
    end = whole.rfind(b"\n") + 1
    lines = whole[:end].splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            same = number <= len(records) and json.loads(line)["prompt"] == records[number - 1]["prompt"]
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise PromptError(f"{path}:{number} answers another prompt: choose another --output, or remove the file")
    if end < len(whole):
        os.truncate(path, end)
    return len(lines)


def chat(run: Any, lines: Iterable[str], write: Callable[[str], None], *, history_tokens: int = 0, **options) -> None:
    """An interactive session: fills or continues every line and shows tokens as they come.

    With `history_tokens` above 0, what was said before stands in front of a new line, cut from the left to that many
    tokens. The line "stop" ends the session, "forget" empties the history.
    """
    tokenizer = (run if isinstance(run, Decoder) else run.decoder).tokenizer
    history: list[int] = []
    for number, line in enumerate(lines):
        line = line.rstrip("\n")
        if line.strip() == "stop":
            return
        if line.strip() == "forget":
            history = []
            continue
        before = tokenizer.decode(history[-history_tokens:]).strip() if history_tokens else ""
        blank = has_blank(line)
        try:
            pieces = stream(
                run, f"{before} {line}".strip(), continuation=not blank,
                seed=options.get("seed", 0) + number, **{k: v for k, v in options.items() if k != "seed"},
            )  # fmt: skip
            answers: dict[int, str] = {}
            for blank_number, piece in pieces:
                if blank_number not in answers and blank:
                    write(f"\n  [{blank_number + 1}] ")
                answers[blank_number] = answers.get(blank_number, "") + piece
                write(piece)
            write("\n")
        except ValueError as error:  # the session goes on
            write(f"{error}\n")
            continue
        history += tokenizer.encode(_with_answers(line, answers) if blank else f"{line}{answers.get(0, '')}")


def _with_answers(line, answers) -> str:
    for number in range(sum(line.count(word) for word in MASK_WORDS)):
        at, word = min((line.find(word), word) for word in MASK_WORDS if word in line)
        line = line[:at] + answers.get(number, "").strip() + line[at + len(word) :]
    return line
