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

_BATCHES_PER_WRITE = 8
_SEED_STRIDE = 1_000_003  # prompts that one seed serves before the next one's draws begin


def fill_or_continue(
    run: Any, prompts: list[str], *, seed: int | list[int] = 0, order="left-to-right",
    unidirectional: bool = False, **options,
) -> list[Filled]:  # fmt: skip
    """Fills the prompts that have a blank, and continues those that have none; `options` as for both."""
    seeds = [seed * _SEED_STRIDE + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
    with_blank = [i for i, prompt in enumerate(prompts) if has_blank(prompt)]
    without = [i for i in range(len(prompts)) if i not in set(with_blank)]
    if unidirectional and with_blank:
        raise PromptError("--unidirectional continues plain text: leave out the masks")
    filled: dict[int, Filled] = {}
    for rows, function, option in (
        (with_blank, fill, {"order": order}), (without, generate, {"unidirectional": unidirectional}),
    ):  # fmt: skip
        if rows:
            texts, row_seeds = [prompts[i] for i in rows], [seeds[i] for i in rows]
            filled |= dict(zip(rows, function(run, texts, seed=row_seeds, **option, **options), strict=True))
    return [filled[i] for i in range(len(prompts))]


def as_dict(filled: Filled) -> dict:
    """What a line of the output file holds."""
    line = {"text": filled.text, "answers": list(filled.answers), "scores": list(filled.scores)}
    if filled.alternatives:
        line["alternatives"] = [as_dict(other) for other in filled.alternatives]
    return line


def answer_file(
    run: Any, source: os.PathLike | str, target: os.PathLike | str, *, batch_size: int = 16, **options
) -> int:
    """Answers a jsonl file ({"prompt": …} a line, other keys are kept) line by line into another; returns how many.

    Prompts that `target` already answers are skipped, so the same call resumes an interrupted one.
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
    start_time, size = time.perf_counter(), batch_size * _BATCHES_PER_WRITE
    with target.open("a", encoding="utf-8") as file:
        # Resumes at the first portion that is not complete: the same prompts share a batch, so every digit is the same.
        for at in range(done // size * size if done < len(records) else done, len(records), size):
            rows = records[at : at + size]
            # A prompt's seed depends on its number in the file, so that a resumed run draws what one run would have.
            seeds = [seed * _SEED_STRIDE + at + i for i in range(len(rows))]
            prompts = [row["prompt"] for row in rows]
            results = fill_or_continue(run, prompts, batch_size=batch_size, seed=seeds, **options)
            for row, filled in list(zip(rows, results, strict=True))[max(done - at, 0) :]:
                file.write(json.dumps(row | as_dict(filled), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            written = at + len(rows)
            rate = (written - done) / (time.perf_counter() - start_time)
            remaining = (len(records) - written) / rate
            logger.info("%d of %d prompts, %.1f a second, %.0f s left", written, len(records), rate, remaining)
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
    """The number of complete lines of `path`; what follows the last of them is removed."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    lines = content[:end].splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            same = number <= len(records) and json.loads(line)["prompt"] == records[number - 1]["prompt"]
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise PromptError(f"{path}:{number} answers another prompt: choose another --output, or remove the file")
    if end < len(content):
        os.truncate(path, end)
    return len(lines)


def chat(run: Any, lines: Iterable[str], write: Callable[[str], None], *, history_tokens: int = 0, **options) -> None:
    """An interactive session: fills or continues every line and shows text as it is chosen.

    With `history_tokens` above 0, the last that many tokens of the session are put before each new line. The line
    "stop" ends the session, "forget" clears the history.
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
        past = tokenizer.decode(history[-history_tokens:]).strip() if history_tokens else ""
        blank = has_blank(line)
        try:
            chunks = stream(
                run, f"{past} {line}".strip(), continuation=not blank,
                seed=options.get("seed", 0) + number, **{k: v for k, v in options.items() if k != "seed"},
            )  # fmt: skip
            answers: dict[int, str] = {}
            for blank_index, chunk in chunks:
                if blank_index not in answers and blank:
                    write(f"\n  [{blank_index + 1}] ")
                answers[blank_index] = answers.get(blank_index, "") + chunk
                write(chunk)
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
