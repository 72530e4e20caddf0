"""Every pattern against the original's encodings, and what the encoder promises beyond them."""

# ruff: noqa: RUF001 (Chinese punctuation)

import pytest

from glm_jax.tasks import patterns_more, patterns_superglue
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.templates import (
    MASK,
    SEGMENT_BREAK,
    SOFT_PROMPT,
    Template,
    TemplateEncoder,
    Truncatable,
    TruncateLast,
)
from tests.helpers.golden_tasks import (
    TOY,
    Words,
    assert_equal,
    load,
    needs_vocabularies,
    rows_of_candidates,
    tokenizer,
)  # fmt: skip
from tests.reference.task_rows import cloze_input, decoder_inputs, segment_rows

RECORDS = load("pvp_samples.json")
TEMPLATES = patterns_superglue.TEMPLATES | patterns_more.TEMPLATES
LONG = " ".join(f"word{i} is here." for i in range(200))
IRAQ = "Weapons of Mass Destruction Found in Iraq."
FIELDS = {
    "rte": {"premise": "No Weapons of Mass Destruction Found in Iraq Yet.", "hypothesis": IRAQ},
    "rte_truncated": {"premise": LONG, "hypothesis": LONG},
    "cb": {
        "premise": "It was a complex language. Not written down but handed down.",
        "hypothesis": "the language was peeled down",
    },
    "boolq": {
        "passage": "Persian language -- Persian is spoken in Iran.",
        "question": "do iran and afghanistan speak the same language",
    },
    "boolq_truncated": {"passage": LONG, "question": "is it here"},
    "wic": {
        "word": "carry",
        "sentence1": "You must carry your camping gear.",
        "sentence2": "Sound carries well over water.",
    },
    "copa": {
        "premise": "My body cast a shadow over the grass.",
        "choice1": "The sun was rising.",
        "choice2": "The grass was cut.",
        "question": "cause",
    },
    "copa_effect": {
        "premise": "The woman tolerated her friend's difficult behavior.",
        "choice1": "She left.",
        "choice2": "She felt sorry for her friend.",
        "question": "effect",
    },
    "wsc": {
        "text": "Mark told Pete many lies about *himself,* which Pete included in his book.",
        "pronoun": "He",
        "span": "Mark",
        "candidates": ["Pete", "the book"],
    },
    "multirc": {
        "passage": "While this process moved along, diplomacy continued. "
        "Direct pressure on the Taliban had proved unsuccessful.",
        "question": "What did the high-level effort do?",
        "answer": "Put pressure on the Taliban.",
    },
    "record": {
        "passage": "Puerto Rico on Sunday overwhelmingly voted for statehood. But Congress will decide.\n"
        "- Puerto Rico voted.",
        "query": "For one, they can truthfully say, \"Don't blame me, I didn't vote for them, \" when discussing the "
        "@placeholder presidency",
        "candidates": ["Donald Trump", "Puerto Rico", "Congress"],
    },
    "record_truncated": {
        "passage": LONG,
        "query": "he likes @placeholder very much",
        "candidates": ["New York City", "Rome"],
    },
    "race": {
        "article": "Last week I talked with my students about what they wanted to do.",
        "question": "When did I talk with my students?",
        "options": ["Last week", "Today", "Never", "Tomorrow"],
    },
    "race_blank": {
        "article": "Last week I talked with my students.",
        "question": "The author talked with _ about plans.",
        "options": ["his students", "his boss", "nobody", "you"],
    },
    "agnews": {"a": "Wall St. Bears Claw Back", "b": "Short-sellers are seeing green again."},
    "yahoo": {"a": "why doesn't an optical mouse work on glass? ", "b": "It needs a texture."},
    "mnli": {
        "a": "Conceptually cream skimming has two basic dimensions.",
        "b": "Product and geography are what make cream skimming work.",
    },
    "yelp-polarity": {"a": "The food was cold and bland."},
    "xstance": {"a": "Should the state do more?", "b": "Yes of course."},
    "sst2": {"sentence": "hide new secretions from the parental units"},
    "cola": {"sentence": "Our friends won't buy this analysis."},
    "mrpc": {"a": "Amrozi accused his brother.", "b": "Referring to him as only the witness."},
    "qqp": {"a": "How is the life of a student?", "b": "Which level of preparation is enough?"},
    "qnli": {"question": "When did the third era begin?", "sentence": "The period ended in 1912."},
    "squad": {
        "context": "Beyoncé rose to fame in the late 1990s.",
        "question": "When did she become famous?",
        "answer": "late 1990s",
    },
    "afqmc": {"a": "蚂蚁借呗等额还款可以换成先息后本吗", "b": "借呗有先息到期还本吗"},
    "cluewsc": {
        "text": "裂开的#伤口#涂满尘土，里面有碎石子和木头刺，我小心翼翼把它*们剔*除出去。",
        "pronoun": "它们",
        "target": "伤口",
    },
}
FIELDS["yelp-full"] = FIELDS["yelp-polarity"]
NAMED = {"copa_effect": "copa", "race_blank": "race"}


def records(keep):
    chosen = [(i, record) for i, record in enumerate(RECORDS) if keep(record)]
    return [pytest.param(r, id=f"{i}-{r['task']}-{r.get('pattern_id')}-{r['tokenizer']}") for i, r in chosen]


def shape_of(record):
    """The record's rows: single token tasks have one, others one a candidate."""
    sample = record["sample"]
    if isinstance(sample["text"][0], int):
        return [sample]
    return [
        {key: value[i] for key, value in sample.items() if type(value) is list and value}
        for i in range(len(sample["text"]))
    ]


def is_single_token(row):
    """Whether one output at the start token scores all candidates."""
    return len(row) == row.prefix_length + 1 and set(row.target_index) == {row.prefix_length}


def check_rows(rows, record, pad):
    samples = shape_of(record)
    single = isinstance(record["sample"]["text"][0], int)
    rows = rows if single else rows_of_candidates(rows)
    assert len(rows) == len(samples)
    for row, sample in zip(rows, samples, strict=True):
        assert_equal(
            row, sample, pad=pad, ids="text", sep="mask", targets="target", mask=None if single else "logit_mask"
        )
        assert list(row.prompt_columns) == sample.get("prompt_pos", [])


@needs_vocabularies
@pytest.mark.parametrize("record", records(lambda r: "shown" in r and r["variant"] != "cross_entropy"))
def test_every_pattern(record):
    task = record["task"]
    prompt = TEMPLATES[NAMED.get(task, task)][record["pattern_id"]]
    tokens = tokenizer(record["tokenizer"])
    rows = TemplateEncoder(tokens, record["seq_length"], as_original=True).encode(prompt, FIELDS[task])
    assert tokens.decode(rows[0].context, print_special=True) == record["shown"]
    check_rows(rows, record, tokens.special.pad)
    assert is_single_token(rows[0]) is not record["multi_token"]
    if is_single_token(rows[0]):
        assert list(rows[0].target_ids) == record["sample"]["target"]
        texts = [[text.replace("▁", "")] for (text,) in record["verbalizers"]]
        assert [[text] for text in prompt.verbalizer.values()] == texts


@needs_vocabularies
@pytest.mark.parametrize("record", records(lambda r: r.get("variant") == "cross_entropy"))
def test_wsc_without_negatives_is_the_first_candidate(record):
    tokens = tokenizer(record["tokenizer"])
    prompt = TEMPLATES["wsc"][record["pattern_id"]]
    rows = TemplateEncoder(tokens, record["seq_length"], as_original=True).encode(prompt, FIELDS["wsc"])
    row = rows_of_candidates(rows)[0]
    assert_equal(
        row,
        record["sample"],
        pad=tokens.special.pad,
        ids="text",
        sep="attention_mask",
        targets="target",
        mask="loss_mask",
    )


@needs_vocabularies
@pytest.mark.parametrize("record", records(lambda r: "error" in r))
def test_words_of_several_tokens(record):
    """The original stops here; asked for one token so do we, and otherwise all tokens are scored."""
    prompt = TEMPLATES[record["task"]][record["pattern_id"]]
    fields = FIELDS.get(record["task"], {"sentence": "标题", "keywords": "词"})
    tokens = tokenizer(record["tokenizer"])
    word = record["error"].split('"')[1]
    with pytest.raises(TaskError, match=f"'{word}' has . tokens where one is asked"):
        TemplateEncoder(tokens, 96, multi_token=False).encode(prompt, fields)
    rows = TemplateEncoder(tokens, 96).encode(prompt, fields)
    assert not is_single_token(rows[0])
    assert all(row.target_ids[-1] == tokens.special.end for row in rows_of_candidates(rows))


@needs_vocabularies
@pytest.mark.parametrize("record", records(lambda r: "num_truncated" in r))
def test_truncation_of_the_original(record):
    tokens = tokenizer(record["tokenizer"])
    prompt = TEMPLATES[record["task"].split("_")[0]][record["pattern_id"]]
    encoder = TemplateEncoder(tokens, record["seq_length"], as_original=True)
    check_rows(encoder.encode(prompt, FIELDS[record["task"]]), record, tokens.special.pad)


@needs_vocabularies
@pytest.mark.parametrize("record", records(lambda r: "spell_length" in r))
def test_soft_prompts(record):
    task, _, count, *prefix = record["task"].split("_")
    tokens = tokenizer(record["tokenizer"])
    encoder = TemplateEncoder(
        tokens,
        record["seq_length"],
        prompt_tokens=int(count),
        prefix_tokens=int(prefix[1]) if prefix else 0,
        as_original=True,
    )
    rows = encoder.encode(TEMPLATES[task][record["pattern_id"]], FIELDS[task])
    check_rows(rows, record, tokens.special.pad)
    assert len(rows[0].prompt_columns) == record["spell_length"]


@needs_vocabularies
def test_segments_and_fast_decode():
    tokens = tokenizer("bert")
    encoded = TemplateEncoder(tokens, 96, as_original=True).encode(TEMPLATES["record"][0], FIELDS["record"])
    context, (blank,) = encoded[0].context, encoded[0].blanks
    candidates = [row.target_ids for row in rows_of_candidates(encoded)]
    record = next(r for r in RECORDS if r["task"] == "record_segment_length_1")
    rows, owners = segment_rows(tokens.special.start, context, blank, candidates, 1)
    assert owners == record["sample"]["segment_id"]
    for row, sample in zip(rows, shape_of(record), strict=True):
        assert_equal(row, sample, pad=0, ids="text", sep="mask", targets="target", mask="logit_mask")
    fast = next(r for r in RECORDS if r["task"] == "record_fast_decode")["sample"]
    assert [*context, *[0] * (96 - len(context))] == fast["text"]
    for i, row in enumerate(decoder_inputs(tokens.special, context, candidates)):
        sample = {key: fast[f"dec_{key}"][i] for key in ("text", "position", "mask", "target", "logit_mask")}
        assert_equal(row, sample, pad=0, ids="text", sep="mask", targets="target", mask="logit_mask")


CLASSIFIED = {  # what the original's classifier reads: one text, or two
    "rte": lambda e: [(e["premise"], e["hypothesis"])],
    "boolq": lambda e: [(e["passage"], e["question"])],
    "wic": lambda e: [(f"{e['word']}: {e['sentence1']}", e["sentence2"])],
    "multirc": lambda e: [(e["passage"], f"{e['question']} answer: {e['answer']}")],
    "copa": lambda e: [(e["premise"] + " because", e["choice1"]), (e["premise"] + " because", e["choice2"])],
    "wsc": lambda e: [(e["text"], e["span"])],
    "record": lambda e: [(e["passage"], e["query"] + " " + entity) for entity in e["candidates"]],
}


@needs_vocabularies
@pytest.mark.parametrize("record", records(lambda r: r["task"].endswith("_classifier")))
def test_classifier_inputs(record):
    task, tokens = record["task"].removesuffix("_classifier"), tokenizer("bert")
    pairs = CLASSIFIED[task](FIELDS[task])
    for (a, b), sample in zip(pairs, shape_of(record), strict=True):
        ids = (tokens.encode(text) for text in (a, b))
        row = cloze_input(tokens.special, *ids, max_length=record["seq_length"], separator=102, add_piece=False)
        assert_equal(row, sample, pad=0, ids="text", sep="mask", mask=None)


def test_the_question_outlives_the_passage():
    """The original shortens the last part first, and so loses the question before the passage."""
    prompt = TEMPLATES["boolq"][0]
    fields = {"passage": " ".join(f"w{i}" for i in range(50)), "question": "is it so"}
    words = Words()
    (row,) = TemplateEncoder(words, 20).encode(prompt, fields)
    assert row.prefix_length == 19
    assert set(words.encode("is it so")) < set(row.context)
    (original,) = TemplateEncoder(words, 20, as_original=True).encode(prompt, fields)
    assert not set(words.encode("is it so")) & set(original.context)
    for length in (12, 11, 10):  # below that the question shrinks too, and the blank stays
        (row,) = TemplateEncoder(words, length).encode(prompt, fields)
        assert row.context[row.blanks[0]] == TOY.mask
        assert row.prefix_length == length - 1
    with pytest.raises(TaskError, match="tokens longer than max_length=7 when all that may be shortened is gone"):
        TemplateEncoder(words, 7).encode(prompt, fields)


def test_two_texts_lose_the_longer_one():
    prompt = Template(lambda e: [Truncatable(e["a"]), SEGMENT_BREAK, Truncatable(e["b"]), MASK], {"x": "x", "y": "y"})
    fields = {"a": "a b c d e f", "b": "k l m n"}
    words = Words()
    (row,) = TemplateEncoder(words, 12).encode(prompt, fields)
    assert row.context[1:-2] == words.encode("a b c d k l m n")
    (row,) = TemplateEncoder(words, 10).encode(prompt, fields)
    assert row.context[1:-2] == words.encode("a b c k l m")


def test_candidates_share_one_context():
    prompt = Template(lambda e: [Truncatable(e["text"]), MASK], candidates=lambda e: ["one", "four words of it"])
    fields = {"text": " ".join(f"w{i}" for i in range(50))}
    rows = TemplateEncoder(Words(), 20).encode(prompt, fields)
    assert len(rows) == 1
    assert max(map(len, rows_of_candidates(rows))) == 20
    alone = TemplateEncoder(Words(), 20, as_original=True).encode(prompt, fields)
    assert [len(row) for row in alone] == [20, 20]


def test_errors_name_label_and_way_out():
    prompt = Template(lambda e: [Truncatable("text"), SOFT_PROMPT, MASK], {"bad": "so so", "good": "fine"})
    with pytest.raises(TaskError, match="label bad: the verbalizer 'so so' has 2 tokens"):
        TemplateEncoder(Words(), 20, multi_token=False).encode(prompt, {})
    assert not is_single_token(TemplateEncoder(Words(), 20).encode(prompt, {})[0])
    with pytest.raises(TaskError, match="label 'ugly' is not in the verbalizer, which knows bad, good"):
        prompt.label_index("ugly", {})
    same = Template(lambda e: [MASK], {"a": " fine", "b": "fine"})
    with pytest.raises(TaskError, match="labels a and b: their verbalizers are the same token"):
        TemplateEncoder(Words(), 20).encode(same, {})
    with pytest.raises(TaskError, match="two labels have the verbalizer 'x'"):
        Template(lambda e: [MASK], {"a": "x", "b": "x"})
    with pytest.raises(TaskError, match="has one blank, but this one has 2"):
        TemplateEncoder(Words(), 20).encode(Template(lambda e: [MASK, MASK], {"a": "x"}), {})
    with pytest.raises(TaskError, match="either a verbalizer or candidates"):
        Template(lambda e: [MASK])
    choice = Template(lambda e: [TruncateLast("?"), MASK], candidates=lambda e: e["options"])
    with pytest.raises(TaskError, match="label 2 is not the number of one of 2"):
        choice.label_index(2, {"options": ["a", "b"]})
    with pytest.raises(TaskError, match="candidates that are not empty"):
        choice.texts({"options": ["a", ""]})
    assert TEMPLATES["boolq"][0].label_index(True, {}) == 1
