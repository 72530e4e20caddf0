"""Sequence to sequence as filling one blank: summaries, questions, and your own pairs of texts (paper, section 3.2;
the original's tasks/seq2seq)."""

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from glm_jax.model.config import GLMConfig
from glm_jax.tasks import metrics
from glm_jax.tasks.encoding import Encoded, encode_example
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import SPLITS, Example, Source, open_text, parallel, split_file
from glm_jax.tasks.superglue import standard_punctuation
from glm_jax.tasks.text_cleaning import detokenize_cnn_dm, detokenize_gigaword, fix_gigaword, fix_tokenization
from glm_jax.tokenizers.base import Tokenizer

logger = logging.getLogger(__name__)

Layout = Callable[[Tokenizer, Mapping[str, Any], int], list[int]]


@dataclasses.dataclass(frozen=True)
class Seq2SeqTask:
    """Pairs of texts. Lengths and decoding are the original's (config_tasks/seq_*.sh), the paper's where they differ.

    Attributes:
      source: a split's name -> examples with the field `target`, and what `layout` reads.
      layout: (tokenizer, fields, source_length) -> Part A with one blank.
      metric: (hypotheses, references) -> named numbers.
      beams, length_penalty, min_length, no_repeat_ngram: of beam search.
      fix: rewrites a sentence that WordPiece generated in the style of the references. Not used with other tokenizers.
    """

    name: str
    source: Source
    layout: Layout
    source_length: int
    target_length: int
    metric: Callable[[Sequence[str], Sequence[str]], dict[str, float]] = metrics.rouge
    beams: int = 5
    length_penalty: float = 0.7
    min_length: int = 0
    no_repeat_ngram: int = 3
    label_smoothing: float = 0.1
    fix: Callable[[str], str] = str

    def encode(
        self, tokenizer: Tokenizer, example: Example, *, training: bool = True, pad_context: bool = False
    ) -> Encoded:
        """Part A and, for training, the target with its end token, cut to `target_length`.

        `pad_context` fills Part A up to `source_length` with padding that is attended to, as the original does; by
        default Part A is not padded.

        Raises:
          TaskError: the layout lost its blank.
        """
        special = tokenizer.special
        context = self.layout(tokenizer, example.fields, self.source_length)
        blanks = [i for i, token in enumerate(context) if token in (special.mask, special.sentence_mask)]
        if not blanks:
            raise TaskError(f"{self.name}: no blank is left in {self.source_length} tokens; raise source_length")
        if pad_context:
            context = context + [special.pad] * (self.source_length - len(context))
        answers = None
        if training:
            target = encode_commands(tokenizer, " " + example.fields["target"])
            answers = [[*target, special.end][: self.target_length]]
        return encode_example(special.start, context, blanks[:1], answers)


def fitted(task: Seq2SeqTask, model: GLMConfig) -> Seq2SeqTask:
    """The task with its lengths reduced to what the model can hold."""
    source, target = model.num_positions, model.num_positions - 2  # start and end token
    if model.layout != "glm":  # both share the positions
        target = min(task.target_length, model.num_positions // 2)
        source = model.num_positions - target - 1
    if task.source_length > source or task.target_length > target:
        logger.warning(
            "%s: examples longer than the model's %d positions are truncated", task.name, model.num_positions
        )
    lengths = min(task.source_length, source), min(task.target_length, target)
    return dataclasses.replace(task, source_length=lengths[0], target_length=lengths[1])


def encode_commands(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a continuation. For released vocabularies, [SEP] and [UNK] in the text are tokens of these names."""
    return getattr(tokenizer, "encode_commands", tokenizer.encode_continuation)(text)


def content(tokenizer: Tokenizer, fields: Mapping[str, Any], length: int) -> list[int]:
    """For summaries: [CLS] [sMASK] Content: source, cut on the right."""
    special = tokenizer.special
    text = tokenizer.encode_continuation(" Content:") + encode_commands(tokenizer, " " + fields["source"])
    return [special.cls, special.sentence_mask, *text][:length]


def continuation(tokenizer: Tokenizer, fields: Mapping[str, Any], length: int) -> list[int]:
    """For your own pairs: [CLS] source [sMASK] [EOS]; a long source loses its beginning."""
    special = tokenizer.special
    ids = tokenizer.encode(fields["source"])
    return [special.cls, *ids[max(0, len(ids) - (length - 3)) :], special.sentence_mask, special.eos]


def question(tokenizer: Tokenizer, fields: Mapping[str, Any], length: int) -> list[int]:
    """For questions: [CLS] context Question: [MASK] Answer: answer. A long context is cut around the answer."""
    special = tokenizer.special
    answer = tokenizer.encode_continuation(" Answer: " + fields["answer"])
    text = tokenizer.encode(fields["context"].rstrip() + " Question:")
    room = length - len(answer) - 2
    if room < 1:
        raise TaskError(f"an answer of {len(answer)} tokens leaves no room for its context in {length} tokens")
    if len(text) > room:
        pattern = tokenizer.encode_continuation(" " + fields["answer"])
        columns = (i for i in range(len(text)) if text[i : i + len(pattern)] == pattern)
        start = max(next(columns, 0) - room // 2, 0)
        text = text[start : start + room]
    return [special.cls, *text, special.sentence_mask, *answer]


def chinese_answer(tokenizer: Tokenizer, fields: Mapping[str, Any], length: int) -> list[int]:
    """For CMRC: [CLS] 问题：question 答案： [MASK] context, cut on the right."""
    special = tokenizer.special
    ask = tokenizer.encode("问题：" + fields["question"] + "答案：")  # noqa: RUF001 (Chinese punctuation)
    ids = [special.cls, *ask, special.mask, *tokenizer.encode_continuation(fields["context"])]
    return ids[:length]


def cleaned(source: Source, clean: Callable[[str], str], clean_target: Callable[[str], str] | None = None) -> Source:
    """A source whose texts are standardised and detokenized."""

    def examples(split):
        for example in source(split):
            text = clean(standard_punctuation(example.fields["source"]))
            target = (clean_target or clean)(standard_punctuation(example.fields["target"]))
            yield Example(example.id, {**example.fields, "source": text, "target": target}, example.label)

    return examples


def gigaword(folder: str) -> Seq2SeqTask:
    """Headlines (Rush et al. 2015)."""
    source = cleaned(parallel(folder), detokenize_gigaword)
    return Seq2SeqTask("gigaword", source, content, 192, 32, length_penalty=0.6, fix=fix_gigaword)


def cnn_dm(folder: str) -> Seq2SeqTask:
    """Highlights of CNN and the Daily Mail (Hermann et al. 2015), sentences split by [SEP]."""
    source = cleaned(parallel(folder), detokenize_cnn_dm, lambda text: detokenize_cnn_dm(text, target=True))
    return Seq2SeqTask("cnn_dm", source, content, 608, 160, min_length=55, fix=fix_tokenization)


def cnn_dm_original(folder: str) -> Seq2SeqTask:
    """The same without detokenization."""
    return Seq2SeqTask("cnn_dm_original", cleaned(parallel(folder), str), content, 608, 160, min_length=55)


def xsum(folder: str) -> Seq2SeqTask:
    """One-sentence summaries (Narayan et al. 2018): its .summary files and the published split."""
    return Seq2SeqTask("xsum", xsum_source(folder), content, 608, 60, beams=6, length_penalty=1.0, min_length=10)


def squad_generation(folder: str) -> Seq2SeqTask:
    """Questions for answers in paragraphs of SQuAD. The references are the questions."""
    return Seq2SeqTask("squad_generation", squad_source(folder), question, 464, 48, metrics.bleu, no_repeat_ngram=0)


def pairs(name: str, folder: str, source_length: int = 512, target_length: int = 128) -> Seq2SeqTask:
    """{split}.source and .target of your own."""
    return Seq2SeqTask(name, parallel(folder), continuation, source_length, target_length)


def modernisation() -> Seq2SeqTask:
    """Verses of the King James Version, to be rewritten as in the World English Bible; both are installed with glm_jax.

    Splits: `validation` and `test` alternate among the verses of the books that pretraining holds out; `train` has all
    other books.
    """
    return Seq2SeqTask(
        "kjv_to_web", verse_pairs, continuation, 96, 96, metrics.bleu, beams=1, length_penalty=0.0, no_repeat_ngram=0
    )


def verse_pairs(split: str) -> Iterator[Example]:
    """The verses that both translations have: fields `source` and `target`. Raises TaskError for another split."""
    from glm_jax.data import bible  # loads TFDS

    if split not in SPLITS:
        raise TaskError(f"the verses have no split {split!r}; they have {', '.join(SPLITS)}")
    old, new = bible.read_verses("kjv"), bible.read_verses("web")
    held_out = 0
    for verse, text in old.items():
        if not text or not new.get(verse):
            continue
        part = "train"
        if verse[0] in bible.HELD_OUT_BOOKS:
            part, held_out = ("validation", "test")[held_out % 2], held_out + 1
        if part == split:
            yield Example("{}-{}-{}".format(*verse), {"source": text, "target": new[verse]})


def xsum_source(folder: str) -> Source:
    """Reads {id}.summary, sections [SN]RESTBODY[SN] and [SN]FIRST-SENTENCE[SN]. Raises TaskError, naming the file."""

    def source(split):
        listing = os.path.join(folder, "XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json")
        with open_text(listing) as file:
            try:
                names = json.load(file)
            except ValueError as error:
                raise TaskError(f"{listing} is not JSON: {error}") from error
        if split not in names:
            raise TaskError(f"XSum has no split {split!r}; it has {', '.join(names)}")
        for name in names[split]:
            path = os.path.join(folder, f"{name}.summary")
            with open_text(path) as file:
                parts = file.read().split("[SN]")[1:]
            sections = dict(zip(parts[::2], (text.strip() for text in parts[1::2]), strict=False))
            if not {"RESTBODY", "FIRST-SENTENCE"} <= set(sections):
                raise TaskError(f"{path} has no RESTBODY and FIRST-SENTENCE")
            text = " ".join(sections["RESTBODY"].split("\n"))
            yield Example(f"{split}-{name}", {"source": text, "target": sections["FIRST-SENTENCE"]})

    return source


def squad_source(folder: str) -> Source:
    """Reads {split}.json (dev.json for validation) in SQuAD's format: context, question, answer; target = question."""

    def source(split):
        path = split_file(folder, split, "json", validation="dev")
        with open_text(path) as file:
            try:
                examples = [
                    Example(f"{split}-{item['id']}", _question_fields(paragraph["context"], item))
                    for article in json.load(file)["data"]
                    for paragraph in article["paragraphs"]
                    for item in paragraph["qas"]
                    if item["answers"]
                ]
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise TaskError(f"{path} is not in SQuAD's format: {error!r}") from error
        return examples

    return source


def _question_fields(context, item):
    question, answer = item["question"], item["answers"][0]["text"]
    return {"context": context, "question": question, "answer": answer, "target": question}


TASKS = {
    "gigaword": gigaword, "cnn_dm": cnn_dm, "cnn_dm_original": cnn_dm_original, "xsum": xsum,
    "squad_generation": squad_generation,
}  # fmt: skip
