"""Models of the Hugging Face hub on the tasks of a sweep, trained by PyTorch: same splits, metrics and search.

An encoder (BERT, RoBERTa) gets a classification head on the text of the prompt without its blank. An encoder-decoder
(T5, BART) writes: a task's answer, or the words of a class, of which the most probable is chosen. Both train all
parameters with AdamW. The extra `baselines` installs what this needs; weights come from the hub or a local folder.
"""

import copy
import dataclasses
import importlib.util
import json
import logging
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from glm_jax.evaluation.baselines import plain_text
from glm_jax.evaluation.generation import as_lines
from glm_jax.evaluation.results import Options, Result, result_of, write_results
from glm_jax.files import write_atomic, write_json_atomic
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example, Source, error_context, read
from glm_jax.tasks.seq2seq import Seq2SeqTask
from glm_jax.tasks.task import AnyTask, Task
from glm_jax.training import optimizer
from glm_jax.training.durations import due
from glm_jax.training.setup import resolve_durations
from glm_jax.tuning.task import few, tasks_of, validation_tasks

logger = logging.getLogger(__name__)

# What a hub model reads of a fine-tuning config; a candidate may change and search these keys.
KEYS = (
    "tasks", "prompt", "seed", "train_duration", "batch_size", "eval_every", "eval_batch_size", "eval_examples",
    "few_shot", "few_shot_seed", "schedule.", "optimizer.b1", "optimizer.b2", "optimizer.eps", "optimizer.weight_decay",
    "optimizer.max_grad_norm",
)  # fmt: skip
_BEST = pathlib.Path("checkpoints", "best")


def missing_packages() -> str | None:
    """The first package that is needed and not installed."""
    return next((name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None), None)


def train_hub(
    config: ConfigDict, folder: pathlib.Path, source: str, on_score: Callable[[int, float], None] = lambda *_: None
) -> None:
    """Fine-tunes the hub model `source` on the config's task, and keeps the best of its validations in the folder.

    Writes metrics.jsonl and result.json as a run of this package does. A run that was stopped starts anew.
    `on_score` is called with the step and score of every validation.

    Raises:
      TaskError: a task that the model cannot learn, or an example or split that cannot be used.
      OSError: a model that is not found.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    task = _task(config)
    torch.manual_seed(config.seed)
    opened = _open(source, task)
    examples = few(read(task.source, config.train_split), config)
    schedule = resolve_durations(config, rows=len(examples))
    rate = optimizer.schedule(
        config.schedule.name, config.schedule.peak_lr, schedule.decay, warmup=schedule.warmup,
        final_lr_ratio=config.schedule.final_lr_ratio,
    )  # fmt: skip
    adam = torch.optim.AdamW(
        _groups(opened.model, config.optimizer.weight_decay), lr=0.0, betas=(config.optimizer.b1, config.optimizer.b2),
        eps=config.optimizer.eps,
    )  # fmt: skip
    lines: list[dict[str, Any]] = []
    best, best_state, began, losses = -np.inf, None, time.perf_counter(), []
    (checked,) = validation_tasks([task], config)
    order = _order(len(examples), config.seed)
    validation: dict[str, float] = {}
    for step in range(1, schedule.total + 1):
        rows = [examples[next(order)] for _ in range(config.batch_size)]
        for group in adam.param_groups:
            group["lr"] = float(rate(step - 1))
        opened.model.train()
        loss = opened.loss(rows)
        loss.backward()
        if config.optimizer.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(opened.model.parameters(), config.optimizer.max_grad_norm)
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss of step {step} is {losses[-1]}: lower schedule.peak_lr")
        if due(step, schedule.evaluate, schedule.total) or step == schedule.total:
            spent = (time.perf_counter() - began) / len(losses)
            lines.append({"step": step, "loss": float(np.mean(losses)), "seconds_per_step": spent})
            result = opened.evaluate(config.validation_split, config.eval_batch_size, checked.source)
            score = next(iter(result.numbers.values()))
            validation = {"validation_score": score}
            validation |= {f"validation_{result.task}_{name}": value for name, value in result.numbers.items()}
            lines.append({"step": step, **validation})
            write_atomic(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
            logger.info("step %d/%d  loss %.3f  validation %.2f", step, schedule.total, lines[-2]["loss"], score)
            if score > best:
                best, best_state = score, copy.deepcopy(opened.model.state_dict())
            on_score(step, score)
            losses, began = [], time.perf_counter()
    opened.model.load_state_dict(best_state)
    opened.save(folder / _BEST)
    size = sum(parameter.numel() for parameter in opened.model.parameters())
    result = {"step": schedule.total, "parameters": size, "trained_parameters": size, "state_bytes": 12 * size}
    write_json_atomic(folder / "result.json", result | validation)


def score_hub(config: ConfigDict, folder: pathlib.Path, split: str, out: pathlib.Path) -> None:
    """Scores the best model of a run on a split: results.json and predictions in the folder `out`."""
    task = _task(config)
    result = _open(str(folder / _BEST), task).evaluate(split, config.eval_batch_size)
    write_results([result], str(out), str(folder))


def _task(config):
    tasks = tasks_of(config)
    if len(tasks) != 1:
        raise TaskError(f"a hub model learns one task, but the config has {len(tasks)}")
    return tasks[0]


def _order(count, seed):
    """Row numbers without end, each epoch in a new order."""
    epoch = 0
    while True:
        yield from np.random.default_rng((seed % 2**32, epoch)).permutation(count).tolist()
        epoch += 1


def _groups(model, weight_decay):
    """As in the original: biases and layer norms are not decayed."""
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        (others if parameter.ndim < 2 or name.endswith("bias") else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _open(source: str, task: AnyTask) -> "_HubModel":
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    local = pathlib.Path(source).is_dir()
    options = {"local_files_only": True} if local else {}
    settings = transformers.AutoConfig.from_pretrained(source, **options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.is_encoder_decoder:
        if not isinstance(task, Task | Seq2SeqTask):
            raise TaskError(f"{task.name} fills several blanks, which a hub model cannot")
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(source, dtype=torch.float32, **options)
        return _Writer(model.to(device), tokenizer, task)
    if not isinstance(task, Task) or task.template.verbalizer is None or task.template.per_candidate:
        raise TaskError(f"{settings.model_type} classifies, but {task.name} has no fixed classes: take T5 or BART")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=len(task.template.verbalizer), dtype=torch.float32, **options
    )
    return _Classifier(model.to(device), tokenizer, task)


@dataclasses.dataclass
class _HubModel:
    """A model with its tokenizer, for one task."""

    model: Any
    tokenizer: Any
    task: Any

    def save(self, folder: pathlib.Path) -> None:
        """Writes the model so that `_open` reads it."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def evaluate(self, split: str, batch_size: int, source: Source | None = None) -> Result:
        """The task's metric on a split, by default of the task's source."""
        import torch

        examples = read(source or self.task.source, split)
        self.model.eval()
        with torch.no_grad():
            parts = [examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]
            answers = [answer for part in parts for answer in self.answers(part)]
        return self.result(examples, answers, split)

    def result(self, examples: Sequence[Example], answers: Sequence[Any], split: str) -> Result:
        """From scores of an example's candidates."""
        pairs = [(scores, (False,) * len(scores)) for scores in answers]
        return result_of(self.task, examples, pairs, Options(split=split))

    def encoded(self, texts: Sequence[str], length: int) -> Mapping[str, Any]:
        """Token ids of texts, cut and padded, on the model's device."""
        batch = self.tokenizer(
            list(texts), truncation=True, max_length=length, padding=True, return_tensors="pt",
            return_token_type_ids=False,
        )  # fmt: skip
        return {name: value.to(self.model.device) for name, value in batch.items()}


class _Classifier(_HubModel):
    """An encoder with a head."""

    def _logits(self, examples):
        return self.model(**self.encoded([plain_text(self.task, e) for e in examples], self.task.max_length)).logits

    def loss(self, examples: Sequence[Example]) -> Any:
        """Mean cross-entropy."""
        import torch

        labels = torch.tensor([self.task.label_index(e) for e in examples], device=self.model.device)
        return torch.nn.functional.cross_entropy(self._logits(examples), labels)

    def answers(self, examples: Sequence[Example]) -> list[list[float]]:
        """Log-probabilities of the classes."""
        return self._logits(examples).log_softmax(-1).tolist()


class _Writer(_HubModel):
    """An encoder-decoder."""

    def _source(self, example):
        with error_context(example):
            return example.fields["source"] if isinstance(self.task, Seq2SeqTask) else plain_text(self.task, example)

    def _lengths(self):
        if isinstance(self.task, Seq2SeqTask):
            return self.task.source_length, self.task.target_length
        return self.task.max_length, self.task.max_length

    def _target_losses(self, sources, targets):
        """Nats of every target token, 0 for padding: [B, K]."""
        import torch

        source_length, target_length = self._lengths()
        labels = self.encoded(targets, target_length)
        ids = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)
        logits = self.model(**self.encoded(sources, source_length), labels=ids).logits
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids, reduction="none"), (ids != -100)

    def loss(self, examples: Sequence[Example]) -> Any:
        """Mean over the targets' tokens."""
        if isinstance(self.task, Seq2SeqTask):
            targets = [e.fields["target"] for e in examples]
        else:
            targets = [self.task.template.texts(e.fields)[self.task.label_index(e)].strip() for e in examples]
        losses, weights = self._target_losses([self._source(e) for e in examples], targets)
        return losses.sum() / weights.sum()

    def answers(self, examples: Sequence[Example]) -> list[Any]:
        """Log-probabilities of the candidates; of sequence to sequence the texts that beam search finds."""
        if isinstance(self.task, Seq2SeqTask):
            written = self.model.generate(
                **self.encoded([self._source(e) for e in examples], self._lengths()[0]), num_beams=self.task.beams,
                max_new_tokens=self.task.target_length, length_penalty=self.task.length_penalty,
                min_new_tokens=self.task.min_length, no_repeat_ngram_size=self.task.no_repeat_ngram,
            )  # fmt: skip
            return [text.strip() for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]
        texts = [self.task.template.texts(e.fields) for e in examples]
        sources = [self._source(e) for e, own in zip(examples, texts, strict=True) for _ in own]
        losses, _ = self._target_losses(sources, [text.strip() for own in texts for text in own])
        scores = iter((-losses.sum(1)).tolist())
        return [[next(scores) for _ in own] for own in texts]

    def result(self, examples: Sequence[Example], answers: Sequence[Any], split: str) -> Result:
        """From scores, or from texts."""
        if isinstance(self.task, Task):
            return super().result(examples, answers, split)
        references = [e.fields["target"] for e in examples]
        numbers = self.task.metric([as_lines(text) for text in answers], [as_lines(text) for text in references])
        rows = [
            {"id": e.id, "split": split, "prediction": answer, "reference": reference}
            for e, answer, reference in zip(examples, answers, references, strict=True)
        ]
        return Result(self.task.name, split, len(examples), numbers, rows)
