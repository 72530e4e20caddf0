"""Text in, text out: fill, generate, stream, and what the verb does with files and conversations."""

import copy
import dataclasses
import json

import pytest

import glm_jax
from glm_jax.decoding import DecodingError, PromptError, batch_inference, steps
from glm_jax.decoding.options import check_count
from glm_jax.decoding.prompts import encode_prompt
from glm_jax.interop import FormatError, Pretrained


def test_text_answers_and_scores(model):
    prompts = ["ba de [MASK] fi ba.", "go [sMASK] la [MASK]."]
    first, second = glm_jax.fill(model, prompts, max_new_tokens=5)
    assert len(first.answers) == len(first.scores) == 1
    assert len(second.answers) == len(second.scores) == 2
    assert all(score < 0 for score in (*first.scores, *second.scores))
    assert first.text == f"ba de{first.answers[0]} fi ba." or first.answers[0].strip() in first.text
    assert glm_jax.fill(model, prompts[0], max_new_tokens=5)[0].answers == first.answers


def test_parameters_are_prepared_once(model, monkeypatch):
    """Whoever calls a second time with the same run, or with a decoder, finds the parameters prepared."""
    prepare, calls = steps.prepare, []
    monkeypatch.setattr(steps, "prepare", lambda *args, **options: calls.append(1) or prepare(*args, **options))
    run = dataclasses.replace(model)
    options = {"max_new_tokens": 3}
    first = glm_jax.fill(run, "ba [MASK] de.", **options)
    assert glm_jax.fill(run, "ba [MASK] de.", **options) == first
    glm_jax.generate(run, "ba de", **options)
    list(glm_jax.stream(run, "ba [MASK] de.", **options))
    assert len(calls) == 1
    decoder = glm_jax.Decoder(*model)
    assert glm_jax.fill(decoder, "ba [MASK] de.", **options) == first
    assert len(calls) == 2
    assert glm_jax.fill(decoder, "ba [MASK] de.", **options) == first
    assert len(calls) == 2


def test_what_cannot_decode_texts_is_refused(model):
    with pytest.raises(TypeError, match=r"fill\(\) takes what from_pretrained returns.* not GLM"):
        glm_jax.fill(model.model, "ba [MASK]")
    with pytest.raises(DecodingError, match=r"stream\(\) needs a tokenizer"):
        glm_jax.stream(glm_jax.Decoder(model.model, model.params, model.tokenizer.special), "ba [MASK]")
    with pytest.raises(FormatError, match="a model in memory has no tokenizer: name a folder"):
        glm_jax.generate(Pretrained(model.model, model.params), "ba")
    with pytest.raises(TypeError, match="tokenizer"):
        glm_jax.Decoder(model.model, model.params, None)


def test_command_tokens_never_appear(model):
    tokenizer = model.tokenizer
    for filled in glm_jax.fill(model, ["ba [MASK] de."], max_new_tokens=20, temperature=5.0, num_answers=20):
        for one in (filled, *filled.alternatives):
            ids = tokenizer.encode(one.answers[0])
            assert not set(ids) & set(tokenizer.special_ids())


def test_alternatives_come_by_falling_score(model):
    (beams,) = glm_jax.fill(model, "ba [MASK] de.", num_beams=4, num_answers=4, max_new_tokens=4)
    scores = [sum(one.scores) for one in (beams, *beams.alternatives)]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(scores) > 1
    (greedy,) = glm_jax.fill(model, "ba [MASK] de.", max_new_tokens=4)
    assert scores[0] >= sum(greedy.scores) - 1e-4


@pytest.mark.thorough
def test_seeds_belong_to_prompts(model):
    options = {"temperature": 1.0, "max_new_tokens": 6}
    prompts = ["ba [MASK] de.", "go [MASK] la.", "ba [MASK] de."]
    together = glm_jax.fill(model, prompts, seed=[3, 4, 3], **options)
    assert together[0].answers == together[2].answers
    assert glm_jax.fill(model, prompts[1], seed=[4], **options)[0].answers == together[1].answers
    assert [f.answers for f in glm_jax.fill(model, prompts, seed=1, **options)] == [
        f.answers for f in glm_jax.fill(model, prompts, seed=1, batch_size=1, **options)
    ]


def test_generation_continues_text(model):
    (free,) = glm_jax.generate(model, "ba de fi", max_new_tokens=6)
    assert free.text.startswith("ba de fi")
    assert free.text == glm_jax.fill(model, "ba de fi [gMASK]", max_new_tokens=6)[0].text
    (onward,) = glm_jax.generate(model, "ba de fi", unidirectional=True, max_new_tokens=6)
    assert onward.text.startswith("ba de fi")
    glm_jax.generate(model, "", unidirectional=True, max_new_tokens=6)


def test_streamed_chunks_make_up_the_answers(model):
    prompt = "go [MASK] la [MASK] ku."
    for order in ("left-to-right", "right-to-left"):
        (whole,) = glm_jax.fill(model, prompt, max_new_tokens=5, order=order)
        answers = ["", ""]
        for blank, chunk in glm_jax.stream(model, prompt, max_new_tokens=5, order=order):
            answers[blank] += chunk
        assert tuple(answers) == whole.answers


@pytest.mark.parametrize(
    ("prompt", "options", "error", "says"),
    [
        ("", {}, PromptError, "is empty"),
        ("ba de", {}, PromptError, r"no blank .*\[MASK\], \[sMASK\], \[gMASK\]"),
        ("ba " * 60 + "[MASK]", {}, PromptError, "longer than the model's 49 positions"),
        ("ba [MASK]", {"max_new_tokens": 60}, PromptError, "13 more than the model's 49 positions"),
        ("ba [MASK]", {"max_new_tokens": 0}, PromptError, "at least 1"),
        ("ba \udcff [MASK]", {}, PromptError, "no text at character 3"),
        ("ba [MASK]", {"order": (1,)}, PromptError, "each of the 1 blanks"),
        ("ba [MASK]", {"order": "backwards"}, PromptError, "unknown order"),
        ("ba [MASK]", {"num_answers": 2}, DecodingError, "would all be equal"),
        ("ba [MASK]", {"num_answers": 3, "num_beams": 2}, DecodingError, "keeps only its beams"),
        ("ba [MASK]", {"min_new_tokens": 9, "max_new_tokens": 5}, DecodingError, "above max_new_tokens=5"),
        ("ba [MASK]", {"seed": [1, 2]}, DecodingError, "2 seeds for 1 prompts"),
        ("ba [MASK]", {"forbidden": ["ba de fi go ku la mo"]}, DecodingError, "only single tokens"),
        ("ba [MASK]", {"forbidden": [10**6]}, DecodingError, "outside the vocabulary"),
        ("ba [MASK]", {"tempreature": 1.0}, TypeError, "tempreature"),
        ("ba [MASK]", {"num_beams": 0}, DecodingError, "num_beams is 0, but must be a whole number of at least 1"),
        ("ba [MASK]", {"min_new_tokens": -1}, DecodingError, "min_new_tokens is -1, but must be a whole number"),
        ("ba [MASK]", {"temperature": -0.5}, DecodingError, "temperature is -0.5, but must be at least 0"),
        ("ba [MASK]", {"num_answers": 0}, DecodingError, "num_answers is 0, but must be a whole number"),
        ("ba [MASK]", {"batch_size": -3}, DecodingError, "batch_size is -3, but must be a whole number"),
        ("ba [MASK]", {"max_new_tokens": -2}, PromptError, "max_new_tokens is -2, but must be a whole number"),
    ],
)
def test_what_cannot_be_answered_is_refused(model, prompt, options, error, says):
    with pytest.raises(error, match=says):
        glm_jax.fill(model, [prompt], **options)


@pytest.mark.parametrize("value", [2.5, "3", True, None, -1])
def test_counts_are_whole_numbers(value):
    with pytest.raises(DecodingError, match=f"top_k is {value!r}, but must be a whole number of at least 0"):
        check_count("top_k", value, 0)


def test_an_unknown_mask_is_named(model):
    tokenizer = model.tokenizer

    without = copy.copy(tokenizer)
    without.special = dataclasses.replace(tokenizer.special, generation_mask=tokenizer.special.mask)
    with pytest.raises(PromptError, match=r"no \[gMASK\]: use \[MASK\], \[sMASK\]"):
        encode_prompt(without, "ba [gMASK]")


@pytest.mark.thorough
def test_a_file_of_prompts_goes_on_where_it_stopped(model, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts = ["ba [MASK] de.", "go la", "ku [MASK] la [MASK].", "mo [MASK]"]
    source.write_text("".join(json.dumps({"id": i, "prompt": p}) + "\n" for i, p in enumerate(prompts)))
    options = {"max_new_tokens": 4, "temperature": 1.0, "batch_size": 2}
    assert batch_inference.answer_file(model, source, target, **options) == 4
    whole = target.read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["id"] for line in lines] == [0, 1, 2, 3]
    assert len(lines[2]["answers"]) == 2
    assert lines[1]["text"].startswith("go la")

    target.write_text(whole[: whole.index("\n") + 20])  # killed in the middle of the second line
    assert batch_inference.answer_file(model, source, target, **options) == 3
    again = [json.loads(line) for line in target.read_text().splitlines()]
    for one, other in zip(lines, again, strict=True):
        assert one.pop("scores") == pytest.approx(other.pop("scores"), abs=1e-4)
        assert one == other
    assert batch_inference.answer_file(model, source, target, **options) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "a [MASK]"}\nno json\n', "in.jsonl:2 is not JSON"),
        ('{"text": "a [MASK]"}\n', "in.jsonl:1 has no prompt"),
        (b'{"prompt": "\xff [MASK]"}\n', "in.jsonl:1 is not JSON"),
        ("\n\n", "holds no prompt"),
        ('{"prompt": "a [MASK]", "answers": ["b"]}\n', "in.jsonl:1 has the key 'answers', under which the result is"),
    ],
)
def test_malformed_files_of_prompts_are_refused(model, tmp_path, text, says):
    source = tmp_path / "in.jsonl"
    source.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PromptError, match=says):
        batch_inference.answer_file(model, source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_answers_to_other_prompts_are_not_touched(model, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "ba [MASK]"}\n')
    target.write_text('{"prompt": "something else"}\n')
    with pytest.raises(PromptError, match="answers another prompt"):
        batch_inference.answer_file(model, source, target)
    assert target.read_text() == '{"prompt": "something else"}\n'


def test_a_file_takes_at_least_one_prompt_at_once(model, tmp_path):
    with pytest.raises(PromptError, match="batch_size 0: give at least 1"):
        batch_inference.answer_file(model, tmp_path / "in.jsonl", tmp_path / "out.jsonl", batch_size=0)


def test_an_empty_answer_leaves_no_blank_in_the_history():
    assert batch_inference._with_answers("ba [MASK] de [sMASK].", {1: " la"}) == "ba  de la."


def test_a_conversation_shows_tokens_and_survives_mistakes(model):
    shown = []
    lines = ["ba [MASK] de.", "[nothing", "forget", "go la", "stop", "never read"]
    batch_inference.chat(model, iter(lines), shown.append, history_tokens=16, max_new_tokens=4)
    assert len(shown) > 4
    batch_inference.chat(model, ["ba " * 60], shown.append, max_new_tokens=4)
    assert "longer than the model's" in shown[-1]
