"""Ten steps of a tiny run on several meshes; a program for test_meshes.py, of one process or of two.

    python mesh_run.py FOLDER MESH,MESH,... [ADDRESS NUMBER]

MESH is data x fsdp x tensor, as 2x2x2. Prints one JSON line: by mesh the losses, a hash of every batch that the model
saw, and a checksum of the state after five steps as each mesh restores it.
"""

import hashlib
import json
import pathlib
import sys
import time

import jax
import numpy as np

from glm_jax.distributed import processes


def main(folder, meshes, address=None, number=0):
    """Runs all meshes, then restores what each saved on every other."""
    if address:
        processes.start(f"{address},2,{number}")
    from glm_jax import data
    from glm_jax.distributed import sharding
    from glm_jax.training import setup
    from glm_jax.training.checkpoint import Checkpointer
    from glm_jax.training.train_step import TokenRows
    from tests.helpers import tiny_run

    folder, programs, found = pathlib.Path(folder), {}, {}
    began = time.monotonic()

    def tell(what):  # where a test that took too long was
        print(f"{time.monotonic() - began:.1f} s: {what}", file=sys.stderr, flush=True)

    config = tiny_run.config(
        folder, train_duration="10 steps", batch_size=16, model__hidden_size=64, model__num_heads=8,
        corruption__document=1.0,
        corruption__pack_objectives=True,
    )  # fmt: skip
    dataset = data.load(config.data.to_dict())
    ends = dataset.tokenizer.sentence_ends()

    def bits(tree, run):
        # One program for all leaves: a gather of each would be compiled by itself, dozens of them.
        whole = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(run.mesh))(tree)
        return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(whole))).hexdigest()

    for mesh_name in meshes.split(","):
        config.mesh.data, config.mesh.fsdp, config.mesh.tensor = map(int, mesh_name.split("x"))
        mesh, rules = setup.check(config)
        run = programs[mesh_name] = setup.make_setup(
            config, setup.resolve_durations(config), mesh, rules, vocab_size=dataset.tokenizer.vocab_size,
            special=dataset.tokenizer.special, sentence_ends=ends,
        )  # fmt: skip
        process_index, process_count = sharding.process_shard(mesh, rules)
        batches = data.train_iterator(
            dataset.train_rows,
            batch_size=config.batch_size,
            seed=0,
            process_index=process_index,
            process_count=process_count,
        )
        losses, seen = [], []
        with run.activate(), Checkpointer(folder / f"checkpoints_{mesh_name}") as checkpoints:
            state = run.init(jax.random.key(0))
            for step in range(1, 11):
                rows = sharding.host_to_device(TokenRows(**next(batches)), mesh, rules)
                seen.append(bits(run.corrupt_held_out(rows), run))
                state, metrics = run.train_step(state, rows)
                losses.append(float(metrics["loss"]))
                tell(f"{mesh_name}: step {step}")
                if step == 5:
                    checkpoints.save(5, state, batches.get_state(), None)
        found[mesh_name] = {"losses": losses, "batches": seen, "restored": {}}
    for saved in found:
        for mesh_name, run in programs.items():
            with run.activate(), Checkpointer(folder / f"checkpoints_{saved}", read_only=True) as checkpoints:
                restored = checkpoints.restore(run.abstract_state)
            process_index, process_count = sharding.process_shard(run.mesh, run.rules)
            batches = data.train_iterator(
                dataset.train_rows,
                batch_size=config.batch_size,
                seed=0,
                process_index=process_index,
                process_count=process_count,
            )
            batches.set_state(restored.data_position)
            with run.activate():
                rows = sharding.host_to_device(TokenRows(**next(batches)), run.mesh, run.rules)
                tell(f"{saved} restored on {mesh_name}")
                found[saved]["restored"][mesh_name] = [bits(restored.state, run), bits(run.corrupt_held_out(rows), run)]
    print("FOUND " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
