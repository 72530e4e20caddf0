"""Held-out loss, and the n-gram baselines on the very same targets."""

from collections.abc import Iterator

import jax
import numpy as np

from glm_jax import data
from glm_jax.corruption.config import OBJECTIVES
from glm_jax.data.ngram import NgramBaseline
from glm_jax.distributed import sharding
from glm_jax.training.metrics import by_objective
from glm_jax.training.setup import PretrainingSetup
from glm_jax.training.train_step import LossSums, TokenRows

BASELINES = ("unigram", "bigram", "interpolated_bigram")


def held_out_rows(rows, batch_size: int, max_examples: int | None, process: int = 0, processes: int = 1):
    """Batches of validation rows for this process: fixed order, evenly spread over the set, padded at the end."""
    max_batches = None if max_examples is None else max(1, max_examples // batch_size)
    for batch in data.validation_batches(
        rows, batch_size=batch_size, process_index=process, process_count=processes, max_batches=max_batches
    ):
        yield TokenRows(**batch)


def evaluate(setup: PretrainingSetup, params, batches: Iterator[TokenRows]) -> dict[str, float]:
    """Validation metrics, weighted by targets over all batches: independent of the batch size.

    `validation_loss` counts every target, `validation_text_loss` leaves the end tokens out, and one loss an objective
    is added where there are several. Losses are nats per target.
    """
    total = None
    for rows in batches:
        sums = setup.eval_step(params, sharding.host_to_device(rows, setup.mesh, setup.rules))
        total = sums if total is None else jax.tree.map(lambda a, b: a + b, total, sums)
    return summarise(jax.device_get(total), "validation_")


def summarise(sums: LossSums, prefix: str = "") -> dict[str, float]:
    """Means of the sums of blank infilling, fetched from the device."""
    loss, weight = np.asarray(sums.loss, np.float64), np.asarray(sums.weight, np.float64)

    def mean(part):
        return float(loss[part].sum() / max(weight[part].sum(), 1))

    means = {"loss": mean(...), "text_loss": mean(np.s_[:, 0])}
    means |= {f"{name}_loss": float(part / max(count, 1)) for name, part, count in by_objective(loss, weight)}
    means["accuracy"] = float(sums.correct / max(weight.sum(), 1))
    return {prefix + name: value for name, value in means.items()}


def baselines(
    setup: PretrainingSetup, ngrams: NgramBaseline, batches: Iterator[TokenRows], cls: int
) -> dict[str, float]:
    """Losses in nats per target of three n-gram models, on the very targets that `evaluate` scores.

    unigram and bigram are smoothed by adding one to every count of the training text; interpolated_bigram is the
    strongest that counts of pairs give. A bigram sees the token before the target in the original text. End tokens are
    no text: each model gives them their true share of the objective's targets, and the text the rest.
    Returns `{model}` over all targets and, where there are several objectives, `{objective}_{model}`.
    """
    losses, counts = np.zeros((len(OBJECTIVES), 3)), np.zeros((len(OBJECTIVES), 2))
    for rows in batches:
        slots = jax.device_get(setup.corrupt_held_out(rows)).unpack()
        for slot, batch in enumerate(slots):
            tokens = rows.tokens[slot :: len(slots)]
            row, slot = np.nonzero(batch.target_weights > 0)
            source, target, objective = (
                batch.target_source[row, slot],
                batch.target_ids[row, slot],
                batch.objective[row],
            )
            text = source < tokens.shape[1]
            previous = np.where(source > 0, tokens[row, np.maximum(source - 1, 0)], cls)
            models = (
                ngrams.unigram_nll(target),
                ngrams.nll(previous, target, add_k=1.0),
                ngrams.nll(previous, target),
            )
            for number, nll in enumerate(models):
                losses[:, number] += np.bincount(objective[text], nll[text], minlength=len(OBJECTIVES))
            for end in (0, 1):
                counts[:, end] += np.bincount(objective[text != end], minlength=len(OBJECTIVES))
    total = counts.sum(1)
    share = counts / np.maximum(total, 1)[:, None]
    # What telling text from end tokens costs: the entropy of their shares.
    entropy = -(counts * np.log(np.where(share > 0, share, 1))).sum(1)
    means = (losses + entropy[:, None]) / np.maximum(total, 1)[:, None]
    overall = (losses.sum(0) + entropy.sum()) / max(total.sum(), 1)
    result = dict(zip(BASELINES, overall.tolist(), strict=True))
    used = np.flatnonzero(total)
    if len(used) > 1:
        result |= {f"{OBJECTIVES[i]}_{name}": float(means[i, n]) for i in used for n, name in enumerate(BASELINES)}
    return result
