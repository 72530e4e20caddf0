"""Tasks that are answered by writing: decode, score, and keep hypotheses beside references."""

import functools
from typing import Any

import jax
import numpy as np

from glm_jax.decoding import Decoder, SamplingParams
from glm_jax.decoding.api import suppressed_ids
from glm_jax.decoding.prompts import EncodedPrompt
from glm_jax.evaluation.results import Options
from glm_jax.model.config import check_lengths
from glm_jax.model.transformer import GLM
from glm_jax.tasks import metrics
from glm_jax.tasks.examples import read
from glm_jax.tasks.infilling import InfillingTask
from glm_jax.tasks.seq2seq import Seq2SeqTask, encode_commands, encode_infilling, fill_in, fitted
from glm_jax.tasks.task import named_example
from glm_jax.tasks.text_cleaning import fix_blank
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.tokenizers.wordpiece import WordPieceTokenizer


def generate(
    model: GLM,
    params: Any,
    tokenizer: Tokenizer,
    task: Seq2SeqTask | InfillingTask,
    options: Options,
) -> tuple[dict[str, float], list[dict]]:
    """The task's numbers, and for each example {"id", "split", "prediction", "reference"}.

    Sequence to sequence decodes by the task's beams, infilling greedily, one blank after another. Raises TaskError for
    an example that cannot be encoded, ValueError for one that is longer than the model.
    """
    if isinstance(task, Seq2SeqTask):
        task = fitted(task, model.config)
    examples = read(task.source, options.split, options.limit)
    name = "text" if isinstance(task, InfillingTask) else "target"
    references = [example.fields[name] for example in examples]
    prompts, written = [], []
    for example in options.share.of(examples):
        if isinstance(task, InfillingTask):
            text, _ = named_example(example, task.blanked, example)
            encoded = named_example(example, encode_infilling, tokenizer, text, None)
            ids = encoded.tokens[: encoded.prefix_length]
            blanks = tuple(i for i, token in enumerate(ids) if token == tokenizer.special.mask)
            written.append(text)
        else:
            encode = functools.partial(task.encode, training=False)
            encoded = named_example(example, encode, tokenizer, example.fields)
            ids = encoded.tokens[: encoded.prefix_length]
            blanks = (encoded.position_ids[-1],)
        prompts.append(EncodedPrompt(tuple(ids), blanks))
    check_lengths(model.config, max((len(prompt.part_a) for prompt in prompts), default=1) - 1, task.target_length)
    keys = jax.random.split(jax.random.key(0), len(prompts))  # not used: nothing is sampled
    answers = Decoder(model, params, tokenizer.special).answer(
        prompts,
        _strategy(task, tokenizer),
        max_new_tokens=task.target_length,
        keys=keys,
        batch_size=options.batch_size,
    )
    hypotheses = []
    for number, (best, *_) in enumerate(answers):
        texts = [tokenizer.decode(np.array(tokens, np.int32)).strip() for tokens in best.tokens]
        hypotheses.append(_filled(written[number], texts) if isinstance(task, InfillingTask) else texts[0])
    hypotheses = options.share.join(hypotheses)
    if isinstance(tokenizer, WordPieceTokenizer):
        hypotheses, references = _fixed(task, tokenizer, hypotheses, references)
    score = metrics.bleu if isinstance(task, InfillingTask) else task.score
    rows = [
        {"id": example.id, "split": options.split, "prediction": hypothesis, "reference": reference}
        for example, hypothesis, reference in zip(examples, hypotheses, references, strict=True)
    ]
    return score([as_lines(text) for text in hypotheses], [as_lines(text) for text in references]), rows


def _fixed(task, tokenizer, hypotheses, references):
    """Both in the same writing: WordPiece takes words apart at every mark, and knows no capital letters."""
    if isinstance(task, InfillingTask):  # its references are in tokens, which the hypothesis takes over
        return [fix_blank(text) for text in hypotheses], references

    def fixed(text):
        return "[SEP]".join(task.fix(sentence) for sentence in text.split("[SEP]"))

    once = [tokenizer.decode(encode_commands(tokenizer, text), print_special=True).strip() for text in references]
    return [fixed(text) for text in hypotheses], [fixed(text) for text in once]


def as_lines(text: str) -> str:
    """Sentences that [SEP] splits, on lines of their own, as ROUGE-L reads them."""
    return "\n".join(part.strip() for part in text.split("[SEP]"))


def _strategy(task, tokenizer):
    forbidden = suppressed_ids(tokenizer)
    if isinstance(task, InfillingTask):
        return SamplingParams(no_repeat_ngram=task.no_repeat_ngram, forbidden=forbidden)
    return SamplingParams(
        num_beams=task.beams,
        length_penalty=task.length_penalty if task.beams > 1 else 0.0,
        min_new_tokens=task.min_length,
        no_repeat_ngram=task.no_repeat_ngram,
        forbidden=forbidden,
    )


def _filled(text, answers):
    return " ".join(fill_in(text, [f" {answer}" for answer in answers]).split())
