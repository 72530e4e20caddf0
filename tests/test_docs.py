"""Runs the commands and Python blocks of README and docs/, and checks links and the map in CONTRIBUTING."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

import glm_jax
from glm_jax.tuning.train import train
from tests.helpers import tiny_run
from tests.helpers.paths import ROOT
from tests.test_imports import ROOMS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
LOOP = ROOT / "docs/your_own_loop.md"

# What a test adds to a command so that it is short, or why it runs elsewhere.
SHORT = {
    "python -m glm_jax pretrain": [
        "--config.train_duration=1 steps", "--config.batch_size=2", "--config.model.num_layers=1",
        "--config.model.hidden_size=32", "--config.model.num_heads=2", "--config.eval_examples=2",
        "--config.data.tokenizer.vocab_size=512",
    ],
    "python -m glm_jax prepare --config=configs/pretrain/quickstart.py": [],
    "python -m glm_jax generate": ["--max-new-tokens=4"],
    "python -m glm_jax convert": [],
    "python -m glm_jax evaluate": [],
    "python -m glm_jax finetune": [
        "--config.train_duration=1 steps", "--config.batch_size=2", "--config.eval_batch_size=4",
    ],
    "python -m glm_jax benchmark corruption": ["--batch=8", "--length=64"],
}  # fmt: skip
ELSEWHERE = {
    "./launch/tpu_vm.sh --dry-run": "tests/test_launch.py",
    "./launch/slurm.sh --dry-run": "tests/test_launch.py",
    "python -m glm_jax prepare --config=configs/pretrain/quickstart.py --": "tests/data/test_beam.py",
    "python -m glm_jax prepare --config=configs/pretrain/glm_10b.py": "needs Dataflow",
    "source .venv/bin/activate": "launch/setup.sh",
    "./launch/quickstart.sh": "tests/test_launch.py, slow",
    "./launch/test.sh": "what runs this test",
    "ruff": ".ci/run",
    "python -m tests.helpers.fidelity": "tests/test_fidelity.py, slow",
    "python -m glm_jax convert THUDM/": "needs the network",
    "python -m glm_jax pretrain --config=configs/pretrain/enwik8.py": "needs the articles",
    "python -m glm_jax finetune --config=configs/finetune/kjv_to_web.py": "it writes 1,446 verses: minutes",
    "python -m glm_jax evaluate --checkpoint runs/enwik8": "tests/evaluation/test_language_model.py",
    "python -m glm_jax generate --checkpoint runs/glm-10b": "needs the released weights",
    **dict.fromkeys(
        (
            f"python -m glm_jax benchmark {verb}"
            for verb in ("step", "attention", "decode", "input", "compile", "finetune", "methods")
        ),
        "tests/benchmarks/test_benchmarks.py",
    ),
    "python -m tools": "tests/tools",
    "python -m glm_jax sweep": "tests/sweeps",
    "python -m glm_jax report": "tests/sweeps",
    "python -m glm_jax plan": "tests/planning/test_estimate.py",
}


def _commands(page):
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                yield shlex.split(line[2:].split("   #")[0])


def _python(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which runs/quickstart is a tiny trained run, and configs/ is the project's."""
    folder = tmp_path_factory.mktemp("docs")
    tiny_run.write_corpus(folder)
    train(tiny_run.config(folder, train_duration="2 steps"), str(folder / "runs" / "quickstart"))
    (folder / "runs" / "enwik8").symlink_to("quickstart")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "prompts.jsonl").write_text('{"prompt": "ba [MASK] de."}\n')
    (folder / "data" / "ag_news").mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"label": i % 4, "title": "ba de", "description": "fi go ba."}) for i in range(4)]
    for split in ("train", "validation", "test"):
        (folder / "data" / "ag_news" / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "data" / "BoolQ").mkdir()
    asked = {"question": "is ba de", "passage": "Fi go ba."}
    rows = [json.dumps({**asked, "idx": i, "label": i % 2 == 0}) for i in range(4)]
    for split in ("train", "val"):
        (folder / "data" / "BoolQ" / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def _run(arguments, folder, **more):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, **more}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


# One test per page, because later commands and Python blocks of a page read what earlier commands wrote.
@pytest.mark.thorough
@pytest.mark.parametrize("page", [p for p in PAGES if any(_commands(p)) or _python(p)], ids=lambda p: p.name)
def test_commands_and_python_blocks_work(page, workplace):
    for command in _commands(page):
        text = shlex.join(command)
        if any(text.startswith(prefix) for prefix in ELSEWHERE):
            continue
        if command[0] == "echo":  # into a file, or into a command
            words = [word if word in "|>" else shlex.quote(word) for word in command]
            _run(["bash", "-ec", " ".join(words).replace("| python", f"| {sys.executable}")], workplace)
            continue
        extra = next(extra for prefix, extra in SHORT.items() if text.startswith(prefix))
        _run([sys.executable, *command[1:], *extra], workplace)
    for block in _python(page) if page != LOOP else ():  # the loop has a test of its own
        if block.startswith("config."):  # part of a config file
            kind = "sweep" if page.name == "sweeps.md" else "pretrain"
            block = f"from glm_jax import config as defaults\nconfig = defaults.{kind}()\n{block}"
        assert _run([sys.executable, "-c", block], workplace) is not None


@pytest.mark.thorough
def test_your_own_loop_trains_on_a_mesh(tmp_path):
    """The block of the page on four devices: the loss falls, and parameters and moments are sharded."""
    (block,) = _python(LOOP)
    lines = [line for line in block.splitlines() if line.strip() and not line.startswith(("#", "import", "from"))]
    assert len(lines) <= 40
    split = "[leaf for leaf in jax.tree.leaves({tree}) if not leaf.sharding.is_fully_replicated]"
    checks = [
        "assert len(mesh.devices.flat) == 4",
        f"assert {split.format(tree='params')} and {split.format(tree='opt_state')}",
    ]
    printed = _run(
        [sys.executable, "-c", "\n".join([block, *checks])], tmp_path,
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )  # fmt: skip
    losses = [float(line.split()[1]) for line in printed.splitlines()]
    assert len(losses) == 5
    assert losses[-1] < losses[0] - 0.02, losses


def _anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    for page in [*PAGES, CONTRIBUTING]:
        for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text()):
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in _anchors(path), f"{page.name} links to {target}#{anchor}"


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    missing = [page.name for page in PAGES[1:] if f"](docs/{page.name})" not in readme]
    assert not missing


def test_the_library_page_has_every_public_name():
    text = (ROOT / "docs/library.md").read_text()
    assert not [name for name in glm_jax.__all__ if not re.search(rf"`{name}\b", text)]


def test_classes_in_the_docs_exist():
    source = "\n".join(path.read_text() for path in (ROOT / "glm_jax").rglob("*.py"))
    for page in [*PAGES, CONTRIBUTING]:
        text = page.read_text()
        for name in set(re.findall(r"`(?:\w+\.)*([A-Z]\w*[a-z]\w*[A-Z]\w*)[.(`]", text)) - {"KeyboardInterrupt"}:
            assert re.search(rf"^class {name}\b", source + "\n" + text, re.M), (page.name, name)


def test_the_map_names_what_exists():
    """Paths in CONTRIBUTING exist, `name` in `file` is defined there, and its rooms are those of the import test."""
    text = CONTRIBUTING.read_text()
    for path in re.findall(r"`((?:glm_jax|tests|configs|launch|tools|docs)/[\w./*]*)`", text):
        assert list(ROOT.glob(path)), path
    located = re.findall(r"`(\w+)`\)? (?:in|of)\s+`(glm_jax/[\w/]+\.py)`", text)
    located += [(name, path) for path, name in re.findall(r"`(glm_jax/[\w/]+\.py)`[^|`]*\(`(\w+)`\)", text)]
    assert len(located) >= 5
    for name, path in located:
        assert re.search(rf"^(def |class )?{name}\b", (ROOT / path).read_text(), re.M), (name, path)
    rooms = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", text, re.M)
    assert tuple(rooms) == ROOMS
