"""Tasks whose answers are generated: decode, compute the metric, and keep hypotheses with their references."""

from typing import Any

import jax
import numpy as np

from glm_jax.decoding import Decoder, SamplingParams
from glm_jax.decoding.api import suppressed_ids
from glm_jax.decoding.prompts import EncodedPrompt
from glm_jax.evaluation.results import Options, Result
from glm_jax.model.config import check_lengths
from glm_jax.model.transformer import GLM
from glm_jax.tasks import metrics
from glm_jax.tasks.examples import error_context, read
from glm_jax.tasks.infilling import InfillingTask, fill_in
from glm_jax.tasks.seq2seq import Seq2SeqTask, encode_commands, fitted
from glm_jax.tasks.text_cleaning import fix_blank
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.tokenizers.wordpiece import WordPieceTokenizer


def evaluate_generation(
    model: GLM,
    params: Any,
    tokenizer: Tokenizer,
    task: Seq2SeqTask | InfillingTask,
    options: Options,
    name: str | None = None,
) -> Result:
    """Generates every example's answer and compares it with the reference.

    Sequence to sequence decodes with the task's beams, infilling greedily, one blank after another. Predictions are
    {"id", "split", "prediction", "reference"}.

    Raises:
      TaskError: an example that cannot be encoded.
      ValueError: an example that is longer than the model.
    """
    if isinstance(task, Seq2SeqTask):
        task = fitted(task, model.config)
    examples = read(task.source, options.split, options.limit)
    local = options.share.of(examples)
    prompts = []
    for example in local:
        with error_context(example):
            encoded = task.encode(tokenizer, example, training=False)
        prompts.append(EncodedPrompt(tuple(encoded.context), encoded.blanks))
    longest = max((len(prompt.part_a) for prompt in prompts), default=1) - 1
    if model.config.layout != "glm":  # the answer goes on where Part A ends
        longest += task.target_length
    check_lengths(model.config, longest, task.target_length)
    answers = Decoder(model, params, tokenizer).complete(
        prompts,
        _sampling_params(task, suppressed_ids(tokenizer, model.config.vocab_size), model.config.layout),
        max_new_tokens=task.target_length,
        keys=jax.random.split(jax.random.key(0), len(prompts)),  # not used: nothing is sampled
        batch_size=options.batch_size,
    )
    hypotheses = []
    for example, (best, *_) in zip(local, answers, strict=True):
        texts = [tokenizer.decode(np.array(tokens, np.int32)).strip() for tokens in best.tokens]
        hypotheses.append(_fill(task, example, texts) if isinstance(task, InfillingTask) else texts[0])
    hypotheses = options.share.join(hypotheses)
    field = "text" if isinstance(task, InfillingTask) else "target"
    references = [example.fields[field] for example in examples]
    if isinstance(tokenizer, WordPieceTokenizer):
        hypotheses, references = _fixed(task, tokenizer, hypotheses, references)
    metric = metrics.bleu if isinstance(task, InfillingTask) else task.metric
    numbers = metric([as_lines(text) for text in hypotheses], [as_lines(text) for text in references])
    rows = [
        {"id": example.id, "split": options.split, "prediction": hypothesis, "reference": reference}
        for example, hypothesis, reference in zip(examples, hypotheses, references, strict=True)
    ]
    return Result(name or task.name, options.split, len(rows), numbers, rows)


def as_lines(text: str) -> str:
    """Puts sentences that are separated by [SEP] on lines of their own, as ROUGE-L reads them."""
    return "\n".join(part.strip() for part in text.split("[SEP]"))


def _fill(task, example, answers):
    text, _ = task.blanked(example)
    return " ".join(fill_in(text, [f" {answer}" for answer in answers]).split())


def _fixed(task, tokenizer, hypotheses, references):
    """Hypotheses and references in the same style: WordPiece splits words at every mark, and drops capital letters."""
    if isinstance(task, InfillingTask):  # its references are tokens, which the hypothesis copies
        return [fix_blank(text) for text in hypotheses], references

    def fixed(text):
        return "[SEP]".join(task.fix(sentence) for sentence in text.split("[SEP]"))

    decoded = [tokenizer.decode(encode_commands(tokenizer, text), print_special=True).strip() for text in references]
    return [fixed(text) for text in hypotheses], [fixed(text) for text in decoded]


def _sampling_params(task, forbidden, layout):
    if layout == "masked":  # it has no beams
        return SamplingParams(forbidden=forbidden)
    if isinstance(task, InfillingTask):
        return SamplingParams(no_repeat_ngram=task.no_repeat_ngram, forbidden=forbidden)
    return SamplingParams(
        num_beams=task.beams,
        length_penalty=task.length_penalty if task.beams > 1 else 0.0,
        min_new_tokens=task.min_length,
        no_repeat_ngram=task.no_repeat_ngram,
        forbidden=forbidden,
    )
