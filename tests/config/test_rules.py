"""Invalid values are rejected by their key, with what to write instead."""

from __future__ import annotations

import re

import pytest

from configs import tiny
from rapo_jax.config.read import read_settings


def read_with(**changes):
    config = tiny.get_config()
    config.update_from_flattened_dict(changes)
    return read_settings(config.to_dict())


@pytest.mark.parametrize(
    "stages", [("rl,evaluate",), ("rl, evaluate",), ("('rl','evaluate'",), ("sft", "rl,evaluate")]
)
def test_stages_in_one_string_are_refused_with_the_tuple_to_write(stages):
    with pytest.raises(ValueError, match="^stages=.*: write a tuple") as refused:
        read_with(stages=stages)
    form = "('rl','evaluate')"
    assert str(refused.value).endswith(f'--config.stages="{form}"')
    assert read_with(stages=("rl", "evaluate")).stages == ("rl", "evaluate")


def test_an_unknown_stage_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="stages='evalute'.*sft, buffer.*'evaluate'"):
        read_with(stages=("rl", "evalute"))


@pytest.mark.parametrize("address", ["host:99999", "host:abc", "[::1"])
def test_an_endpoint_whose_address_is_none_is_refused_by_its_key(address):
    judge = {"evaluate.judge.url": f"http://{address}/v1", "evaluate.judge.model": "m"}
    with pytest.raises(ValueError, match=r"^evaluate\.judge\.url=.*: the base of an endpoint"):
        read_with(**judge)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "key", ["rl.m", "optimizer.learning_rate", "model.norm_eps", "buffer.least_reward"]
)
def test_a_number_that_is_not_finite_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"^{re.escape(key)}={value}: must be "):
        read_with(**{key: value})


def test_a_workdir_is_no_cold_start(tmp_path):
    read_with(**{"sft.folder": str(tmp_path)})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ValueError, match="^sft.folder=.*the workdir of a run, whose cold start is in"
    ):
        read_with(**{"sft.folder": str(tmp_path)})


def test_a_mask_that_is_no_regular_expression_is_refused():
    with pytest.raises(ValueError, match=re.escape("retrieval.mask='(a': no regular expression")):
        read_with(**{"retrieval.mask": "(a"})


@pytest.mark.parametrize("key", ["rl.std_floor", "rl.clip_low", "rl.clip_high"])
def test_a_floor_or_a_bound_below_zero_is_refused(key):
    with pytest.raises(ValueError, match=re.escape(f"{key}=-0.1: must be at least 0")):
        read_with(**{key: -0.1})
    read_with(**{key: 0.0})


@pytest.mark.parametrize("key", ["optimizer.clip_norm", "sft.clip_norm"])
def test_a_clip_that_makes_every_gradient_zero_is_refused_with_what_clips_nothing(key):
    for norm in (0.0, -1.0):
        with pytest.raises(
            ValueError, match=re.escape(f"{key}={norm}: ") + ".* 1e9, clips nothing"
        ):
            read_with(**{key: norm})
    read_with(**{key: 1e9})


@pytest.mark.parametrize(
    ("key", "value"),
    [("optimizer.learning_rate", -1.0), ("optimizer.warmup", -5), ("optimizer.b2", 1.5),
     ("sft.checkpoint_every", 0), ("model.layer_unroll", 0), ("retrieval.width", 0), ("seed", -1),
     ("task.chains.seed", -1), ("seed", 2**32), ("optimizer.weight_decay", -1.0)],
)  # fmt: skip
def test_a_number_that_means_nothing_is_refused_by_its_key(key, value):
    with pytest.raises(ValueError, match=re.escape(f"{key}={value}: ")):
        read_with(**{key: value})


@pytest.mark.parametrize("floor", [0.0, -1.0, float("nan")])
def test_an_entropy_floor_that_lets_a_division_by_zero_pass_is_refused(floor):
    with pytest.raises(ValueError, match=re.escape(f"rl.entropy_floor={floor}: ")):
        read_with(**{"rl.entropy_floor": floor})


@pytest.mark.parametrize("every", [0, 20])
def test_samples_between_the_evaluations_that_they_are_taken_from_are_refused(every):
    with pytest.raises(ValueError, match=f"log.samples_every=30: .* of evaluate.every={every}"):
        read_with(**{"log.samples_every": 30, "evaluate.every": every})
    read_with(**{"log.samples_every": 30, "evaluate.every": 15})


DATASET = {
    "stages": ("buffer", "rl", "evaluate"),
    "task.name": "dataset",
    "task.dataset.train": "gsm8k:train",
    "task.dataset.eval": "gsm8k:test",
    "tools.search.kind": "retrieval",
    "model.folder": "folder",
    "buffer.agent": "none",
    "buffer.files": (__file__,),
    "sft.gate_one_hop": 0.0,
    "sft.gate_follow": 0.0,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.dataset.train": " "}, "task.dataset.train=' ': task.name='dataset' needs a file"),
        ({"task.dataset.eval": ""}, "task.dataset.eval='': task.name='dataset' needs a file"),
        ({"tools.search.kind": "local"}, "task.dataset.documents='': tools.search.kind='local' se"),
        ({"model.folder": ""}, "model.folder='': task.name='dataset' has no scripted agent to le"),
        ({"stages": ("sft", "rl")}, "stages=('sft', 'rl'): task.name='dataset' has no demonstrat"),
        ({"buffer.agent": "scripted"}, "buffer.agent='scripted': task.name='dataset' has no scri"),
        ({"sft.gate_follow": 0.1}, "sft.gate_follow=0.1: task.name='dataset' has no decisions"),
        ({"task.dataset.malformed": "ski"}, "task.dataset.malformed='ski': expected one of skip"),
    ],
)
def test_a_data_set_with_what_only_a_made_task_can_do_is_refused(changes, message):
    assert read_with(**DATASET).task.name == "dataset"
    with pytest.raises(ValueError, match=re.escape(message)):
        read_with(**DATASET | changes)


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"mode": "on"}, "distributed.mode='on': expected one of off, auto, explicit"),
        ({"mode": "explicit"}, "distributed.coordinator='': host:port of process 0"),
        ({"mode": "explicit", "coordinator": "here"}, "distributed.coordinator='here': host:port"),
        ({"mode": "explicit", "processes": 0}, "distributed.processes=0: must be at least 1"),
        ({"mode": "explicit", "process": 2}, "distributed.process=2: 0 … distributed.processes=2"),
        ({"process": 1}, "distributed.process=1: only distributed.mode='explicit' reads it"),
    ],
)
def test_processes_that_cannot_find_each_other_are_refused(changes, refusal):
    full = {"coordinator": "localhost:1", "processes": 2} if len(changes) == 2 else {}
    given = {f"distributed.{key}": value for key, value in (full | changes).items()}
    with pytest.raises(ValueError, match=re.escape(refusal)):
        read_with(**given)


def test_stages_that_open_no_run_are_refused_on_several_processes():
    with pytest.raises(ValueError, match="stages=.*score, export, plan and search_index run in"):
        read_with(stages=("export",), **{"distributed.mode": "auto"})


def test_user_tools_that_are_no_pairs_are_refused_with_the_form_that_works():
    message = "tools.user_tools=('calculator', 'm:f'): expected a tuple such as (('a', 'b'),)"
    with pytest.raises(ValueError, match=re.escape(message)):
        read_with(**{"tools.user_tools": ("calculator", "m:f")})
    assert read_with(**{"tools.user_tools": (("calculator", "m:f"),)}).tools.user_tools == (
        ("calculator", "m:f"),
    )


def test_only_a_user_task_has_user_arguments():
    config = tiny.get_config()
    config.task.user_arguments.words = 3
    with pytest.raises(
        ValueError, match=re.escape("task.user_arguments={'words': 3}: only task.name='modu")
    ):
        read_settings(config.to_dict())
    config.task.name = "my_task:TASK"
    assert read_settings(config.to_dict()).task.user_arguments == {"words": 3}
    config.task.name = "chain"
    with pytest.raises(
        ValueError, match="task.name='chain': expected one of chains, pairs, dataset, mo"
    ):
        read_settings(config.to_dict())


def test_a_data_set_with_a_user_search_needs_no_documents():
    user_tools = {"tools.user_tools": (("search", "m:f"),), "tools.search.kind": "local"}
    assert read_with(**DATASET | user_tools).task.dataset.documents == ""


def test_the_checkpoint_of_an_agent_must_be_there_where_its_buffer_is_made(small_settings):
    changes = {"buffer.agent": "checkpoint", "buffer.checkpoint": "/, runs/misspelt/agent"}
    message = "^buffer.checkpoint='runs/misspelt/agent': there is no such folder$"
    with pytest.raises(ValueError, match=message):
        small_settings(changes)
    small_settings(changes | {"stages": ("rl",)})
