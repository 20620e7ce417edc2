"""One process of a job of several: reads its share of the batches, saves, loses a checkpoint, restores the one before.

Run by test_checkpoint.py as `peer.py PORT PROCESS COUNT WORKDIR DATA`; prints what it saw as one JSON line.
"""

import json
import logging
import pathlib
import sys

import jax


def main(port: str, process: int, count: int, workdir: str, data: str) -> None:
    """Everything above, on two devices per process."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", count, process)
    from test_checkpoint import same, state_at

    from xmodal_jax.parallel.mesh import batch_sharding, make_mesh, replicated
    from xmodal_jax.settings import MeshConfig
    from xmodal_jax.training.checkpoint import Checkpoints

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    mesh = make_mesh(MeshConfig(1, 2 * count, 1))

    def place(leaf):
        return batch_sharding(mesh) if leaf.ndim == 2 and leaf.shape[0] % 8 == 0 else replicated(mesh)

    def put(state):
        return jax.tree.map(lambda leaf: jax.device_put(leaf, place(leaf)), state)

    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(leaf)), state_at(0)
    )
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.latest() is None
        for step in (2, 4):
            checkpoints.save(put(state_at(step)))
    if process == 0:
        whole = max(
            (pathlib.Path(workdir) / "checkpoints" / "4" / "rest").rglob("*"), key=lambda path: path.stat().st_size
        )
        whole.write_bytes(whole.read_bytes()[:-1])
    jax.experimental.multihost_utils.sync_global_devices("damaged")
    with Checkpoints(workdir) as checkpoints:
        state = checkpoints.restore(abstract)
        assert jax.tree.all(jax.tree.map(lambda leaf: leaf.sharding == place(leaf), state))
        same(jax.tree.map(local, state), jax.tree.map(local, put(state_at(2))))
        checkpoints.save(put(state_at(4)))
    print(json.dumps({"ids": batches_of(process, count, mesh, data), "steps": checkpoints.steps()}))


def local(leaf: jax.Array) -> list:
    """The values of a global array that this process holds, one after the other."""
    import numpy as np

    return np.concatenate([np.asarray(shard.data).reshape(-1) for shard in leaf.addressable_shards])


def batches_of(process: int, count: int, mesh: jax.sharding.Mesh, data: str) -> list[list[int]]:
    """The ids of three global batches of 8, as the devices of this process hold them."""
    from xmodal_jax.data.config import DataConfig
    from xmodal_jax.data.loader import Loader
    from xmodal_jax.data.readers import InputSpec
    from xmodal_jax.data.text import load_tokenizer
    from xmodal_jax.data.train import train_dataset
    from xmodal_jax.data.transfer import Prefetch
    from xmodal_jax.parallel.mesh import batch_sharding

    specs = {"image": InputSpec(8), "text": InputSpec(6, load_tokenizer("data", data))}
    dataset = train_dataset(data, "train", specs, DataConfig(), 0, 8)
    with Prefetch(Loader(dataset, 0, process, count), batch_sharding(mesh)) as batches:
        found = [next(batches)["id"] for _ in range(3)]
    assert all(batch.shape == (8,) for batch in found), "the global batch"
    return [local(batch).tolist() for batch in found]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
