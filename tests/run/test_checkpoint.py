"""Checkpoints: what was saved comes back bit for bit, and a save that fails loses nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rapo_jax.model.sharding import make_mesh, place, replicated, rows
from rapo_jax.run.checkpoint import Checkpoints, more_checkpoints
from rapo_jax.types import TrainState

OPTIMIZER = optax.adam(1e-3)


def state_at(step):
    """A state whose every number depends on the step; odd bits included."""
    rng = np.random.default_rng(step)
    params = {
        "w": rng.standard_normal((8, 3)).astype(np.float32),
        "deep": {"b": np.float32([step])},
    }
    opt_state = jax.tree.map(lambda x: x + np.float32(1e-7) * step, OPTIMIZER.init(params))
    return TrainState(jax.tree.map(jnp.asarray, params), opt_state, jnp.int32(step))


def blank():
    return jax.tree.map(jnp.zeros_like, state_at(0))


def same(found, wanted):
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype


@pytest.fixture
def open_store(tmp_path):
    stores = []

    def make(keep=2):
        stores.append(Checkpoints(tmp_path / "checkpoints", keep=keep))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def test_state_and_notes_come_back_bit_for_bit(open_store):
    metadata = {"stream": {"next_index": 7}, "seconds": 0.1 + 0.2}
    open_store().save(3, state_at(3), metadata)
    again = open_store()
    assert again.latest() == 3
    state, found = again.restore(blank())
    same(state, state_at(3))
    assert jax.tree.structure(state) == jax.tree.structure(state_at(3))
    assert found == metadata


def test_an_empty_folder_has_no_checkpoint(open_store):
    assert open_store().latest() is None


def test_the_newest_are_kept_and_an_older_one_of_them_can_be_asked_for(open_store, tmp_path):
    store = open_store(keep=2)
    for step in (1, 2, 3):
        store.save(step, state_at(step), {"at": step})
    same(store.restore(blank())[0], state_at(3))
    same(store.restore(blank(), step=2)[0], state_at(2))
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir())
    assert left == ["2", "3"]


def test_what_a_killed_save_left_is_removed_where_saves_are_and_nowhere_else(open_store, tmp_path):
    open_store().save(1, state_at(1), {})
    left = tmp_path / "checkpoints" / "13.orbax-checkpoint-tmp"
    left.mkdir()
    (left / "half").write_text("")
    assert open_store(keep=None).steps() == [1] and left.exists()
    assert open_store().steps() == [1] and not left.exists()


def test_a_path_that_is_a_pattern_to_orbax_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"odd\[1\]/checkpoints: .* must not hold a '\['"):
        Checkpoints(tmp_path / "odd[1]" / "checkpoints")


def test_saving_a_step_again_changes_nothing(open_store):
    store = open_store()
    store.save(1, state_at(1), {})
    store.save(1, state_at(2), {})
    same(store.restore(blank())[0], state_at(1))


@pytest.mark.parametrize(
    ("keep", "held", "writes", "more"),
    [
        (2, 0, 9, 3),
        (2, 1, 9, 2),
        (2, 2, 9, 1),
        (2, 3, 9, 1),
        (2, 0, 1, 1),
        (2, 2, 0, 0),
        (None, 5, 9, 9),
    ],
)
def test_the_checkpoints_that_are_kept_and_the_one_that_is_written_need_room(
    keep, held, writes, more
):
    assert more_checkpoints(keep, held=held, writes=writes) == more


def test_a_disk_without_room_for_parameters_and_moments_is_refused(open_store, monkeypatch):
    """25 numbers, two moments of each and two counts, of 4 bytes; three at a time."""
    for free, writes in ((924, 9), (308, 1), (0, 0)):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free)
        )
        open_store().check_room(state_at(0), writes=writes)
        if free:
            monkeypatch.setattr(
                shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free - 1)
            )
            with pytest.raises(ValueError, match="keep=2: .* more checkpoints of 0.0 GB; lower it"):
                open_store().check_room(state_at(0), writes=writes)


def test_parameters_alone_come_back_without_knowing_the_optimizer(open_store):
    store = open_store()
    store.save(5, state_at(5), {})
    params = store.restore_params()
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    same(params, state_at(5).params)


def test_a_checkpoint_of_one_device_is_restored_onto_eight(open_store):
    store = open_store()
    store.save(4, state_at(4), {})
    mesh = make_mesh()
    wanted = place(blank(), replicated(mesh))
    wanted.params["w"] = place(wanted.params["w"], rows(mesh))
    state, _ = store.restore(wanted)
    same(state, state_at(4))
    assert state.params["w"].sharding == rows(mesh)
    assert len(state.params["deep"]["b"].addressable_shards) == 8


SAVE_ON_A_FULL_DISK = """
import json, resource, sys
import jax.numpy as jnp, numpy as np
from rapo_jax.run.checkpoint import Checkpoints, more_checkpoints
from rapo_jax.types import TrainState

folder = sys.argv[1]

def state(step):
    noise = np.random.default_rng(step).standard_normal(50_000).astype(np.float32)
    return TrainState({"w": jnp.asarray(noise)}, {}, jnp.int32(step))

store = Checkpoints(folder, keep=1)
store.save(1, state(1), {"at": 1})
free = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, free[1]))  # no file may grow beyond this
try:
    store.save(2, state(2), {"at": 2})
    failure = ""
except Exception as error:
    failure = type(error).__name__
resource.setrlimit(resource.RLIMIT_FSIZE, free)

again = Checkpoints(folder, keep=1)
found, metadata = again.restore(state(0))
same = bool((np.asarray(found.params["w"]) == np.asarray(state(1).params["w"])).all())
again.save(2, state(2), {"at": 2})
print(json.dumps({"failure": failure, "latest": int(found.step), "metadata": metadata, "same": same,
                  "then": again.restore(state(0))[1]["at"]}))
"""


def test_a_save_that_finds_the_disk_full_raises_and_leaves_the_former_checkpoint(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SAVE_ON_A_FULL_DISK, str(tmp_path / "checkpoints")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("failure")
    assert found == {"latest": 1, "metadata": {"at": 1}, "same": True, "then": 2}


def largest_file(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "digests.json")
    return max(files, key=lambda path: path.stat().st_size)


def flip_bit(path, *, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_after_any_flipped_bit_the_checkpoint_before_is_restored_and_steps_go_on_from_it(
    open_store, tmp_path, capsys
):
    open_store(keep=3).save(1, state_at(1), {"at": 1})
    newest = tmp_path / "checkpoints" / "2"
    for share in np.random.default_rng(0).random(6):
        open_store(keep=3).save(2, state_at(2), {"at": 2})
        damaged = largest_file(newest)
        flip_bit(damaged, bit=int(share * 8 * damaged.stat().st_size))
        store = open_store(keep=3)
        state, metadata = store.restore(blank())
        same(state, state_at(1))
        assert metadata == {"at": 1}
        said = capsys.readouterr().out
        assert f"{newest} is damaged: {damaged.relative_to(newest)} has other contents" in said
        store.save(2, state_at(2), {"at": 2})
        same(open_store(keep=3).restore(blank())[0], state_at(2))
    aside = {path.name for path in (tmp_path / "checkpoints").glob("damaged-*")}
    assert aside == {"damaged-2", *(f"damaged-2-{n}" for n in range(2, 7))}


@pytest.mark.parametrize("how", ["cut", "removed", "digests"])
def test_a_checkpoint_with_a_file_cut_short_or_lost_is_passed_over(open_store, tmp_path, how):
    for step in (1, 2):
        open_store().save(step, state_at(step), {})
    newest = tmp_path / "checkpoints" / "2"
    if how == "cut":
        path = largest_file(newest)
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "removed":
        largest_file(newest).unlink()
    else:
        (newest / "digests.json").write_text('{"state')
    store = open_store()
    assert store.latest() == 1
    same(store.restore_params(), state_at(1).params)


@pytest.mark.parametrize("missing", ["state", "about", "about/metadata", "state/_METADATA", "."])
def test_half_a_copy_without_its_digests_makes_way_for_the_checkpoint_before(
    open_store, tmp_path, missing, capsys
):
    store = open_store()
    for step in (1, 2):
        store.save(step, state_at(step), {"step": step})
    newest = tmp_path / "checkpoints" / "2"
    (newest / "digests.json").unlink()
    part = newest / missing
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    newest.mkdir(exist_ok=True)  # an empty one, as where a copy has begun
    assert open_store().latest() == 1
    assert f"{newest} is damaged: " in capsys.readouterr().out
    state, metadata = open_store().restore(blank())
    same(state, state_at(1))
    assert metadata == {"step": 1}


def test_where_every_checkpoint_is_damaged_the_error_says_so(open_store, tmp_path):
    open_store().save(1, state_at(1), {})
    largest_file(tmp_path / "checkpoints" / "1").unlink()
    with pytest.raises(
        ValueError, match=r"checkpoints: every checkpoint there is damaged, .* backup"
    ):
        open_store().latest()


def test_a_checkpoint_killed_before_its_digests_is_taken_and_said_to_be_unchecked(
    open_store, tmp_path, capsys
):
    open_store().save(1, state_at(1), {})
    (tmp_path / "checkpoints" / "1" / "digests.json").unlink()
    same(open_store().restore(blank())[0], state_at(1))
    assert "has no digests.json: its files are not checked" in capsys.readouterr().out
