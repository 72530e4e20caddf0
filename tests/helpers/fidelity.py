"""Comparisons with the original, and the page docs/fidelity.md that lists them.

    python -m tests.helpers.fidelity    # runs the tests that compare and writes docs/fidelity.md

A test compares through the fixture `fidelity`, which asserts. While the page is written, it also records what it
measured. A golden file needs an entry in GOLDEN_SET; its rows come from the tests.
"""

import collections
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import jax
import numpy as np

from tests.helpers import argument_defaults
from tests.helpers.paths import TESTS

PAGE = TESTS.parent / "docs/fidelity.md"
RECORD = "GLM_JAX_FIDELITY"  # environment variable that names the file to which measurements are appended

# Golden file -> what the original stored in it. A file without measurements is listed with the tests that name it, or
# after "->" with the section that explains why it is not compared.
GOLDEN_SET = {
    "Model": {
        "ckpt_A.npz": "weights of a model with 3 layers of width 64",
        "ckpt_B.npz": "weights of a model with 2 layers of width 48 and 3 heads",
        "forward_A.npz": "logits, losses, hidden states and gradients of model A",
        "forward_B.npz": "the same of model B",
        "variant_no_block_position.npz": "a model without the second position",
        "variant_attention_scale8.npz": "attention scaled by 8",
        "variant_transformer_xl.npz": "relative positions and memory -> differences.md, Transformer-XL",
        "init_stats_12L_256H.json": "statistics of initial weights",
        "prompt_lstm.npz": "soft prompts through an LSTM",
        "prompt_mlp.npz": "soft prompts through an MLP",
        "prompt_none.npz": "soft prompts without an encoder",
        "seqcls_cls.npz": "classifier head on [CLS]",
        "seqcls_start.npz": "classifier head on the start token",
        "seqcls_pad.npz": "classifier head on the last token of Part A",
    },
    "Training": {
        "lr_schedules.npz": "learning rates of all pretraining scripts, and of other schedules",
        "param_groups_A.json": "parameters with and without weight decay",
        "train_steps_A.npz": "twelve AdamW steps",
        "argument_defaults.json": "defaults of the command line",
    },
    "Corruption": {
        **{
            f"corruption_{name}.npz": f"corrupted batches: {what}"
            for name, what in {
                "bert": "blank infilling",
                "sentence": "sentences",
                "document": "documents",
                "document_prompt": "documents with prompts",
                "mixed_10B": "the mixture of GLM-10B",
                "random_position": "random first positions",
                "sentinel": "sentinel tokens",
                "no_shuffle": "blanks from left to right",
                "no_block_position": "no second position",
                "context_mask": "masked context",
                "masked_lm": "masked language model",
                "single_span": "one blank",
                "avg_len_6": "blanks of 6 tokens",
            }.items()
        },
        "corruption_stats_20k.npz": "statistics of 20,000 rows",
        "sample_spans_cases.json": "placements of blanks",
    },
    "Data and tokenizers": {
        "block_dataset.json": "rows of BlockDataset",
        "tokenizers.json": "ids and decodings of 12 tokenizers; needs the released vocabularies (GLM_JAX_ASSETS)",
        "split_ds.json": "training and validation documents -> differences.md, held-out documents",
        "lazy_example": "tokens on disk -> differences.md, tokens on disk",
    },
    "Checkpoints": {
        "megatron_A": "checkpoint of the original",
        "megatron_A_MP2": "the same in two model-parallel shards",
        "megatron_B": "checkpoint of the original",
        "hub_A": "checkpoint of the hub",
        "hub_B": "checkpoint of the hub",
        "hub_forward_A.npz": "logits of the hub's code",
        "hub_forward_B.npz": "logits of the hub's code",
        "hub_builders.json": "inputs and outputs of the hub's code",
    },
    "Generation": {
        "ckpt_G.npz": "weights for decoding",
        "ckpt_H.npz": "weights for decoding, with a likely end token",
        "incremental_A.npz": "steps with memory",
        "beam_search.json": "beam search, all hypotheses",
        "blank_filling.json": "greedy filling of several blanks",
        "sample_sequence.json": "the interactive script",
        "topk_topp.json": "filters of the sampler",
    },
    "Tasks": {
        "input_builders.json": "inputs of cloze questions",
        "pvp_samples.json": "patterns and verbalizers",
        "finetune_losses.npz": "losses of fine-tuning",
        "cloze_single_token.npz": "scores of one-token answers",
        "cloze_multi_token.npz": "scores of longer answers",
        "seq2seq_samples.json": "sequence-to-sequence inputs",
        "lm_windows.json": "windows of language modelling",
        "lambada_samples.json": "inputs of LAMBADA",
        "text_and_metrics.json": "detokenizers and scores",
    },
}

HEAD = """# Fidelity to the original

<!-- Written by `python -m tests.helpers.fidelity`. Change the tests or that file, and run it again. -->

This page lists every comparison with the original, THUDM/GLM at commit 4f61ed7. The original ran in float32 on a CPU
without dropout; `tests/golden/` holds what it computed. A difference is the largest absolute difference over all
elements and cases. "Relative" divides it by the largest element of each tensor, and "equal" means that every element
is the same. `at most` is the tolerance of the test. On another machine, the last digits of float32 may differ. The
differences that are intended are in [differences.md](differences.md)."""


class Fidelity:
    """Compares with golden arrays in a test. Every method asserts and records one row of the page."""

    def __init__(self, test: str):
        self._test = test

    def close(self, file, what, actual, expected, tolerance, *, relative=False):
        """Asserts that trees of arrays differ by at most `tolerance`; `relative` scales by the largest element."""

        def difference(a, b):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            assert a.shape == b.shape, f"{file}: {what}: shapes {a.shape} and {b.shape}"
            return np.abs(a - b).max(initial=0.0) / (np.abs(b).max(initial=0.0) if relative else 1.0)

        worst = max(jax.tree.leaves(jax.tree.map(difference, actual, expected)))
        self.within(file, what + (" (relative)" if relative else ""), worst, tolerance)

    def equal(self, file, what, actual, expected):
        """Asserts that trees of arrays, or plain values, are equal."""
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, f"{file}: {what}"), actual, expected)
        self._write(file, what, 0.0, None)

    def compared(self, file, what):
        """Records that the test itself has asserted that every element is equal."""
        self._write(file, what, 0.0, None)

    def within(self, file, what, difference, tolerance):
        """Asserts that a difference which the test has measured itself is at most `tolerance`."""
        assert difference <= tolerance, f"{file}: {what} differs by {difference:.3g}, more than {tolerance:g}"
        self._write(file, what, float(difference), tolerance)

    def _write(self, file, what, difference, tolerance):
        assert file in files(), f"{file} is not in GOLDEN_SET of tests/helpers/fidelity.py"
        if os.environ.get(RECORD):
            with open(os.environ[RECORD], "a") as out:
                out.write(json.dumps([file, what, difference, tolerance, self._test.split("::")[0]]) + "\n")
        else:
            bound = "exact" if tolerance is None else f"{tolerance:g}"
            assert (file, what, bound) in {(row[0], row[1], row[3]) for row in page_rows(PAGE.read_text())}, (
                f"docs/fidelity.md has no row ({file}, {what}, {bound}): run python -m tests.helpers.fidelity"
            )


def files() -> dict[str, str]:
    """Golden file -> what it holds."""
    return {file: holds for group in GOLDEN_SET.values() for file, holds in group.items()}


@functools.cache
def page_rows(page: str) -> list[tuple[str, ...]]:
    """Rows of the page: (file, compared, difference, at most, tests)."""
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    return [tuple(cell.strip(" `") for cell in line.strip("|").split("|")) for line in lines]


def tests_that_name(file: str) -> list[str]:
    """Test modules that name a golden file. The suffix may be omitted if the name contains an underscore."""
    path = pathlib.PurePath(file)
    ending = re.escape(path.suffix)
    pattern = re.compile(rf"""["'/]{path.stem}{f"({ending})?" if "_" in path.stem else ending}["'/]""")
    modules = [path for path in sorted(TESTS.rglob("test_*.py")) if pattern.search(path.read_text())]
    return [path.relative_to(TESTS.parent).as_posix() for path in modules]


def render(measurements) -> str:
    """Returns the page for measurements (file, compared, difference, tolerance, test)."""
    rows = collections.defaultdict(dict)
    for file, what, difference, tolerance, test in measurements:
        bound = "exact" if tolerance is None else f"{tolerance:g}"
        worst, tests = rows[file].get((what, bound), (0.0, set()))
        rows[file][what, bound] = max(worst, difference), tests | {test}
    page = [HEAD]
    for group, names in GOLDEN_SET.items():
        page += [f"\n## {group}\n", "| file | compared | difference | at most | test |", "|---|---|---|---|---|"]
        for file, holds in names.items():
            for (what, bound), (worst, tests) in sorted(rows[file].items()):
                shown = "equal" if bound == "exact" else f"{worst:.1e}"
                page.append(f"| `{file}` | {what} | {shown} | {bound} | {', '.join(sorted(tests))} |")
            if not rows[file]:
                holds, _, reason = holds.partition(" -> ")
                tests = ", ".join(tests_that_name(file))
                shown = f"not offered: {reason}" if reason else "asserted in the test" if tests else "not compared yet"
                page.append(f"| `{file}` | {holds} | {shown} | | {tests} |")
    return "\n".join(page) + _defaults()


def _defaults():
    """Returns the section of defaults that differ intentionally."""
    golden = json.loads((TESTS / "golden/argument_defaults.json").read_text())
    page = ["\n\n## Defaults that differ intentionally\n", "| the original | | here | | why |", "|---|---|---|---|---|"]
    for argument, (key, why) in argument_defaults.DIFFERENT.items():
        value = argument_defaults.ours(key)
        page.append(f"| --{argument.replace('_', '-')} | {golden[argument]} | {key} | {value} | {why} |")
    return "\n".join(page) + "\n"


def measure() -> list[list]:
    """Runs every test that uses the fixture `fidelity` and returns the recorded measurements."""
    with tempfile.TemporaryDirectory() as folder:
        record = pathlib.Path(folder) / "measurements"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", str(TESTS)]
        environment = {**os.environ, RECORD: str(record), "PYTHONPATH": str(TESTS.parent)}
        done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"the tests failed; the page is unchanged:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
        return [json.loads(line) for line in record.read_text().splitlines()]


if __name__ == "__main__":
    text = render(measure())
    PAGE.write_text(text)
    print(f"wrote {PAGE}: {len(page_rows(text))} rows")
