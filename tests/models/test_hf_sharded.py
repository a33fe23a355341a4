"""Loading onto a mesh: each device gets its part of each parameter, and only that is read."""

import collections
import dataclasses
import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from salt_jax.distributed.sharding import make_mesh, tree_shardings
from salt_jax.models import policy_folder
from salt_jax.models.hf import import_checkpoint, open_checkpoint
from salt_jax.models.safetensors_folder import Safetensors
from tests import hf_checkpoints as setup
from tests.house import REPOSITORY

CONFIG = dataclasses.replace(setup.TINY, num_heads=4, num_kv_heads=2, qk_norm=True)
pytestmark = pytest.mark.mesh


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1), (1, 1, 4), (8, 1, 1)])
def test_a_device_reads_its_part_only(sizes, tmp_path, monkeypatch):
    setup.write_checkpoint(tmp_path, config=CONFIG)
    expected = open_checkpoint(tmp_path).load()
    checkpoint = open_checkpoint(tmp_path)
    shardings = tree_shardings(checkpoint.shapes(), make_mesh(*sizes))
    read, largest = collections.Counter(), collections.Counter()
    plain = Safetensors.read

    def counted(self, name, index):
        part = plain(self, name, index)
        read[name] += part.nbytes
        largest[name] = max(largest[name], part.nbytes)
        return part

    monkeypatch.setattr(Safetensors, "read", counted)
    params = checkpoint.load(shardings)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert jax.tree.map(lambda x: x.sharding, params) == shardings
    # every tensor once, whatever the number of replicas
    assert read == {name: facts.nbytes for name, facts in checkpoint.facts.items()}
    fsdp_tensor = sizes[1] * sizes[2]
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.gate_proj.weight", "lm_head.weight"):
        assert largest[name] * fsdp_tensor == checkpoint.facts[name].nbytes


def test_layers_may_be_split(tmp_path):
    checkpoint = open_checkpoint(setup.write_checkpoint(tmp_path, config=CONFIG))
    mesh = make_mesh(1, 2, 4)
    layers = NamedSharding(mesh, PartitionSpec("fsdp"))
    shardings = jax.tree.map(lambda _: layers, checkpoint.shapes())
    jax.tree.map(np.testing.assert_array_equal, checkpoint.load(shardings), open_checkpoint(tmp_path).load())


def test_an_imported_folder_loads_onto_any_mesh(tmp_path):
    checkpoint = open_checkpoint(setup.write_checkpoint(tmp_path / "hf", config=CONFIG))
    import_checkpoint(tmp_path / "hf", tmp_path / "own")
    own = open_checkpoint(tmp_path / "own", compute_dtype="bfloat16")
    assert own.config == dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    assert jax.tree.structure(own.shapes()) == jax.tree.structure(checkpoint.shapes())
    shardings = tree_shardings(own.shapes(), make_mesh(2, 2, 2))
    params = own.load(shardings)
    assert jax.tree.map(lambda x: x.sharding, params) == shardings
    jax.tree.map(np.testing.assert_array_equal, params, checkpoint.load())
    jax.tree.map(np.testing.assert_array_equal, own.load(), checkpoint.load())
    source = json.loads((tmp_path / "own" / policy_folder.SOURCE / "config.json").read_text())
    assert source == json.loads((tmp_path / "hf" / "config.json").read_text())


TWO_PROCESSES = """
import sys
from pathlib import Path
import jax
folder, index, port = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
from salt_jax.models.hf import export, open_checkpoint, write_policy_json
from salt_jax.distributed.sharding import make_mesh, tree_shardings
checkpoint = open_checkpoint(folder / "in")
params = checkpoint.load(tree_shardings(checkpoint.shapes(), make_mesh(1, 2, 2)))
assert not params["embedding"].is_fully_addressable
export(params, checkpoint.config, folder / "out", source=checkpoint, dtype="float32")
assert (folder / "out" / "config.json").exists()  # for both, when export returns
write_policy_json(folder / "run", checkpoint.config, checkpoint)
"""


@pytest.mark.slow
def test_two_processes_load_their_parts_and_the_first_writes(tmp_path, subprocess_env):
    setup.write_checkpoint(tmp_path / "in", config=CONFIG)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    env = subprocess_env | {"XLA_FLAGS": f"{subprocess_env['XLA_FLAGS']} --xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path)]
    runs = [
        subprocess.Popen([*command, str(i), port], cwd=REPOSITORY, env=env, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    try:
        errors = [run.communicate(timeout=120)[1] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], errors
    again = open_checkpoint(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again.load(), open_checkpoint(tmp_path / "in").load())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "run"]
