"""Decoding against what the original code produced."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.decoding import decoder, logits, steps
from glm_jax.decoding.options import SamplingParams
from glm_jax.model.transformer import GLM
from tests.helpers.decoding_models import CONFIG, GOLDEN, SPECIAL, full, params


@functools.cache
def prepared(name, unrolled=True):
    return steps.prepare(params(name), config=CONFIG, unrolled=unrolled)


def golden(name):
    return json.loads((GOLDEN / name).read_text())


@functools.partial(jax.jit, static_argnames="config")
def forward(prepared, *arguments, config=CONFIG):
    return steps.forward(prepared, *arguments, model=GLM(config))


@pytest.mark.parametrize("unrolled", [True, False], ids=["apart", "stacked"])
def test_incremental_steps(unrolled, fidelity):
    """A context of 12 tokens, then nine tokens one at a time."""
    with np.load(GOLDEN / "incremental_A.npz") as file:
        data = {k: a.astype(np.int32) if a.dtype == np.int64 else a for k, a in file.items()}
    p = prepared("A", unrolled)
    positions, tokens = data["context_position_ids"], data["context_ids"]
    length = np.full(len(tokens), tokens.shape[1], np.int32)
    context = decoder.encode(
        p, tokens, positions[:, 0], positions[:, 1], data["context_sep"], length, model=GLM(CONFIG)
    )
    cache = steps.empty_answers(context, 1, data["gen_ids"].shape[1])
    logits = []
    for step in range(data["gen_ids"].shape[1]):
        token, place = data["gen_ids"][:, step, None], jnp.full((len(tokens), 1), step + 1)
        found, cache = forward(p, context, cache, jnp.int32(step), token, data["mask_pos"][:, None], place)
        logits.append(found[:, 0])
    fidelity.close("incremental_A.npz", "logits of nine cached steps", np.stack(logits, 1), data["step_logits"], 1e-5)
    # The same by one forward over everything.
    tokens = np.concatenate([tokens, data["gen_ids"]], 1)
    places = np.broadcast_to(np.arange(1, 10, dtype=np.int32), (3, 9))
    whole = full(
        CONFIG, params("A"), tokens,
        np.concatenate([positions[:, 0], data["mask_pos"][:, None].repeat(9, 1)], 1),
        np.concatenate([positions[:, 1], places], 1), data["context_sep"],
    )  # fmt: skip
    fidelity.close("incremental_A.npz", "logits of one forward over everything", whole, data["full_logits"], 1e-5)


def hypotheses(case, name):
    options = case["args"]
    tokens, positions = np.array(case["tokens"], np.int32)[:, :-1], np.array(case["position_ids"], np.int32)
    lengths = np.array(case["sep"], np.int32)
    if case["attention_mask4d"] is not None:  # padding is hidden: explicit lengths here
        lengths = np.array(case["attention_mask4d"])[:, 0, -1, :-1].sum(-1).astype(np.int32)
    p = prepared("H" if name.startswith("H_") else "G")
    context = decoder.encode(p, tokens, positions[:, 0, :-1], positions[:, 1, :-1], lengths, lengths, model=GLM(CONFIG))
    beams = options["num_beams"]
    sampling_params = SamplingParams(
        num_beams=beams, min_new_tokens=options["min_tgt_length"], no_repeat_ngram=options["no_repeat_ngram_size"],
        length_penalty=options["length_penalty"] if beams > 1 else 0.0, top_k=options["top_k"],
    )  # fmt: skip
    values = sampling_params.values(CONFIG.vocab_size).replace(length_penalty=jnp.float32(options["length_penalty"]))
    found = decoder.search(
        p, context, positions[:, 0, -1], values, model=GLM(CONFIG), shape=sampling_params.shape(), num_beams=beams,
        max_new_tokens=options["tgt_seq_length"], start=SPECIAL.start, stops=(SPECIAL.end,),
        count_positions=not options["no_block_position"],
    )  # fmt: skip
    return jax.device_get(found)


@pytest.mark.thorough
def test_beam_search(fidelity):
    """123 searches with all their hypotheses; in four the original divides by zero."""
    failed, differences = 0, [0.0]
    for name, case in golden("beam_search.json").items():
        found = hypotheses(case, name)
        if case["error"]:
            assert "ZeroDivisionError" in case["error"]
            assert np.isfinite(found.values[:, 0]).all(), name
            failed += 1
            continue
        np.testing.assert_array_equal(found.finished, case["done"], name)
        for row, expected in enumerate(case["all_hyps"]):
            expected = sorted(expected, key=lambda pair: -pair[0])
            valid = np.isfinite(found.values[row])
            lengths = found.lengths[row, valid]
            tokens = [t[:n].tolist() for t, n in zip(found.tokens[row, valid], lengths, strict=True)]
            assert tokens == [tokens for _, tokens in expected], (name, row)
            values = np.array([value for value, _ in expected])
            differences += (np.abs(found.values[row, valid] - values) / np.maximum(1, np.abs(values))).tolist()
            decoded = [t for t in case["decoded"][row] if t not in (SPECIAL.end, SPECIAL.pad)]
            assert tokens[0] == decoded, (name, row)
    assert failed == 4
    fidelity.compared("beam_search.json", "tokens of all hypotheses in 119 searches")
    fidelity.within("beam_search.json", "values of all hypotheses (relative above 1)", max(differences), 1e-5)
    for name in ("ckpt_G.npz", "ckpt_H.npz"):
        fidelity.compared(name, "as the model of those searches")


def written(name, tokens, lengths, masks, sampling_params, max_new_tokens, limit, feed_truncated_token):
    """Tokens chosen for each blank of each row."""
    p, rows = prepared(name), len(tokens)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    context = decoder.encode(p, tokens, positions, np.zeros_like(tokens), lengths, lengths, model=GLM(CONFIG))
    keys = jax.random.split(jax.random.key(0), (rows, 1))
    first = np.full(rows, SPECIAL.start, np.int32)
    state = decoder.init_state(context, masks, keys, first, np.zeros(rows, np.int32), max_new_tokens=max_new_tokens)
    state = decoder.decode_loop(
        p, context, masks, state, jnp.int32(limit), sampling_params.values(CONFIG.vocab_size), model=GLM(CONFIG),
        shape=sampling_params.shape(), start=SPECIAL.start, stops=(SPECIAL.eos, SPECIAL.end),
        max_new_tokens=max_new_tokens, feed_truncated_token=feed_truncated_token,
    )  # fmt: skip
    chosen, blanks = jax.device_get((state.tokens[:, 0], state.blanks[:, 0]))
    stops = (SPECIAL.eos, SPECIAL.end)
    return [
        [[int(t) for t, b in zip(c, row, strict=True) if b == blank and t not in stops] for blank in range(len(m))]
        for c, row, m in zip(chosen, blanks, masks, strict=True)
    ]


def test_sample_sequence(fidelity):
    """Several blanks from left to right, by sampling among the top 1; the original never feeds a cut answer's end."""
    data = golden("sample_sequence.json")
    options = data["args"]
    sampling_params = SamplingParams(temperature=options["temperature"], top_k=options["top_k"])
    for case in data["cases"].values():
        tokens = np.array([case["context"]], np.int32)
        masks = np.array([case["mask_positions"]], np.int32)
        length = np.array([tokens.shape[1]], np.int32)
        answers = written(
            "H", tokens, length, masks, sampling_params, options["out_seq_length"], 1000, feed_truncated_token=False
        )[0]
        assert case["context"] + [t for a in answers for t in (SPECIAL.start, *a)] == case["out"]
    fidelity.compared("sample_sequence.json", "tokens of several blanks")


def test_blank_filling(fidelity):
    """Greedy filling with blocked n-grams and one limit for all blanks of a row."""
    data = golden("blank_filling.json")
    limit = data["tgt_seq_length"]
    sampling_params = SamplingParams(no_repeat_ngram=data["no_repeat_ngram_size"])
    for case in data["cases"].values():
        tokens = np.array(case["tokens"], np.int32)[:, :-1]
        masks = [[i for i, t in enumerate(row) if t == SPECIAL.mask] for row in tokens.tolist()]
        columns = np.full((len(masks), max(map(len, masks))), -1, np.int32)
        for row, at in enumerate(masks):
            columns[row, : len(at)] = at
        lengths = np.full(len(tokens), case["sep"], np.int32)
        answers = written("H", tokens, lengths, columns, sampling_params, limit, limit, feed_truncated_token=False)
        for row, (prompt, filled) in enumerate(zip(tokens.tolist(), answers, strict=True)):
            remaining, whole = iter(filled), []
            for token in prompt:
                whole += next(remaining) if token == SPECIAL.mask else [token]
            assert " ".join(map(str, (t for t in whole if t != SPECIAL.pad))) == case["predictions"][row]
    fidelity.compared("blank_filling.json", "filled texts")


def test_top_k_and_top_p(fidelity):
    for case in golden("topk_topp.json").values():
        found = jnp.array(case["logits"])
        if case["top_k"]:
            found = logits.top_k_filter(found, case["top_k"])
        if case["top_p"]:
            found = logits.top_p_filter(found, case["top_p"])
        np.testing.assert_array_equal(np.isfinite(found), np.array(case["kept"], bool))
    fidelity.compared("topk_topp.json", "which tokens stay")


def test_hub_generation(fidelity):
    """Prompts of different length in one batch: greedy tokens, and the logits of every step."""
    data = golden("hub_builders.json")
    inputs = data["generation"]
    positions = np.array(inputs["position_ids"], np.int32)
    tokens = np.array(inputs["input_ids"], np.int32)[:, :-1]
    lengths = np.array(inputs["generation_attention_mask"])[:, 0, 0].sum(-1).astype(np.int32)
    config = dataclasses.replace(CONFIG, gelu="exact")
    p = prepared("A")
    width = tokens.shape[1]
    context = decoder.encode(
        p, tokens, positions[:, 0, :width], positions[:, 1, :width], lengths, lengths, model=GLM(config)
    )  # fmt: skip
    cache = steps.empty_answers(context, 1, 4)
    token, chosen, logits = jnp.full((2, 1), SPECIAL.start), [], []
    step_logits = data["greedy_generation"]["step_logits"]
    for step in range(len(step_logits)):
        place = positions[:, 1, width + step, None]
        found, cache = forward(
            p, context, cache, jnp.int32(step), token, positions[:, 0, width + step, None], place, config=config
        )
        logits.append(found[:, 0])
        token = found.argmax(-1).astype(jnp.int32)
        chosen.append(token)
    expected = np.array(data["greedy_generation"]["output_ids"])
    fidelity.close("hub_builders.json", "logits of greedy steps", np.stack(logits), np.array(step_logits), 1e-5)
    fidelity.equal("hub_builders.json", "tokens of greedy steps", np.concatenate(chosen, 1), expected[:, -4:])
    np.testing.assert_array_equal(expected, data["generate_api"])


def hub_logits(inputs):
    """Logits of the hub's inputs by our model; padding stands behind Part A there, and is no part of it here."""
    tokens, positions = np.array(inputs["input_ids"], np.int32), np.array(inputs["position_ids"], np.int32)
    config = dataclasses.replace(CONFIG, gelu="exact")
    seen = np.array(inputs["attention_mask"])[:, 0]
    found = np.zeros((*tokens.shape, CONFIG.vocab_size), np.float32)
    for row, mask in enumerate(seen):
        columns = np.flatnonzero(mask[-1])  # what the last token of Part B sees
        prefix = np.array([mask[0].sum()], np.int32)
        ids, first, second = (a[None, columns] for a in (tokens[row], *positions[row]))
        found[row, columns] = full(config, params("A"), ids, first, second, prefix)[0]
    return found


@pytest.mark.parametrize("case", ["train_padding_false", "train_padding_true"])
def test_hub_training(case, fidelity):
    data = golden("hub_builders.json")
    logits = hub_logits(data[case])
    labels = np.array(data[case]["labels"])
    rows, columns = np.nonzero(labels != -100)
    log_probs = jax.nn.log_softmax(logits[rows, columns])
    loss = -np.mean(np.asarray(log_probs)[np.arange(len(rows)), labels[rows, columns]])
    fidelity.close("hub_builders.json", f"loss of {case}", loss, data[f"{case}_loss"], 1e-5)


def test_hub_multiple_choice(fidelity):
    """Choices side by side behind one Part A, none seeing another: here each is scored alone."""
    data = golden("hub_builders.json")
    inputs, scores = data["multiple_choice"], []
    for row, (ids, positions) in enumerate(zip(inputs["input_ids"], inputs["position_ids"], strict=True)):
        scores.append([])
        n = int(np.array(inputs["attention_mask"])[row, 0, 0].sum())
        for choice, columns in zip(inputs["choice_ids"][row], inputs["choice_indices"][row], strict=True):
            kept = [*range(n), *columns]
            arrays = (np.array([ids])[:, kept], *(np.array([p])[:, kept] for p in positions))
            config = dataclasses.replace(CONFIG, gelu="exact")
            logits = full(config, params("A"), *(a.astype(np.int32) for a in arrays), np.array([n], np.int32))[0, n:]
            scores[-1].append(float(jax.nn.log_softmax(logits)[np.arange(len(choice)), np.array(choice)].sum()))
    expected = data["multiple_choice_logits"]
    fidelity.close("hub_builders.json", "scores of choices", np.array(scores), np.array(expected), 1e-5)
