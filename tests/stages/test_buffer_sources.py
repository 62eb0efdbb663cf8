"""Agents that fill the buffer: a chat endpoint, policies, several at once; and builds cut short."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch

from rapo_jax.buffer.trajectory_file import TrajectoryFile
from rapo_jax.distributed import Stopped
from rapo_jax.stages import buffer_sources
from rapo_jax.stages.buffer import build_buffer
from rapo_jax.stages.buffer_policies import load_buffer_policy
from rapo_jax.stages.buffer_sources import sample_agents
from rapo_jax.tasks.stream import load_questions
from rapo_jax.text.protocol import tags
from rapo_jax.text.tokens import build_tokenizer, load_tokens
from rapo_jax.train.buffer import load_buffer
from rapo_jax.train.sft import demonstrations
from tests.model.checkpoints import make_model, save_model

SEARCH = "<think>look</think><search>a b</search>"
ANSWER = "<think>so</think><answer>\\boxed{c}</answer>"


def teacher(asked):
    """An endpoint that searches once and then answers."""

    def answer(handler, body):
        asked.append(body)
        text = SEARCH if len(body["messages"]) == 2 else ANSWER
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return 200, {"choices": [choice], "usage": {"total_tokens": 7}}

    return answer


def tired(world, *, error):
    """An expert whose first trajectory is as good as the endpoint's, and all others are worse."""
    steps = iter([ANSWER])
    return lambda question, history, rng: next(steps, "nothing")


def drawing(drawn):
    """An agent that answers at once, and notes a random number of each trajectory."""

    def act(question, history, rng):
        drawn.append(rng.random())
        return ANSWER

    return act


def asking(url, folder, **changes):
    return {
        "buffer.folder": str(folder),
        "buffer.agent": "endpoint",
        "buffer.endpoint.url": url,
        "buffer.endpoint.model": "teacher",
        "buffer.endpoint.concurrency": 1,
        "buffer.questions": 3,
    } | changes


def test_the_expert_draws_other_numbers_than_the_demonstrator_does_on_its_questions(
    branch, tmp_path
):
    run = branch({"buffer.folder": str(tmp_path / "buffer"), "sft.inject_share": 0.0})
    shown, asked = [], []
    task = run.task._replace(
        demonstrator=lambda world, **_: drawing(shown),
        expert=lambda world, *, error: drawing(asked),
    )
    run = dataclasses.replace(run, task=task)
    demonstrations(run)
    sample_agents(run)()
    assert shown and asked
    assert len({*shown, *asked}) == len(shown) + len(asked)


def test_a_chat_endpoint_fills_the_buffer_and_is_not_asked_again(
    branch,
    tmp_path,
    capsys,
    serve,  # noqa: F811
):
    asked = []
    url = serve(teacher(asked))
    first = branch(asking(url, tmp_path / "b", **{"buffer.endpoint.max_calls_total": 5}))
    manifest = build_buffer(first)
    assert manifest["endpoint"] == {
        "model": "teacher", "trajectories": 2, "wanted": 6, "failed": 0, "calls": 5, "tokens": 35,
        "stopped": "buffer.endpoint.max_calls_total=5: 5 are spent",
    }  # fmt: skip
    assert manifest["traces_by_origin"] == {"endpoint:teacher": 4}
    assert (
        f"continuing with 2 of 6 trajectories (for more raise it, delete {tmp_path}/b/done.json "
        f"and start a new --workdir with --config.buffer.folder={tmp_path}/b)"
    ) in capsys.readouterr().out
    (tmp_path / "b" / "done.json").unlink()  # as after a kill before the end
    asked.clear()
    again = branch(asking(url, tmp_path / "b"), name="again")
    found = build_buffer(again)["endpoint"]
    assert (found["trajectories"], found["calls"], found["stopped"]) == (6, 5 + 8, "")
    assert len(asked) == 4 * 2
    assert asked[0]["messages"][0]["content"] == again.system


def test_a_signal_ends_the_asking_of_an_endpoint_and_what_finished_is_kept(
    branch,
    tmp_path,
    monkeypatch,
    serve,  # noqa: F811
):
    asked = []
    changes = asking(serve(teacher(asked)), tmp_path / "b", **{"buffer.samples": 1})
    monkeypatch.setattr(buffer_sources, "stop_requested", lambda: True)
    with pytest.raises(Stopped, match="finished trajectories of the endpoint are kept"):
        build_buffer(branch(changes))
    assert len(asked) == 2
    monkeypatch.undo()
    build_buffer(branch(changes, name="again"))
    assert len(asked) == 3 * 2


def test_several_agents_fill_one_buffer_and_each_trace_keeps_its_origin(
    branch,
    tmp_path,
    serve,  # noqa: F811
):
    changes = asking(serve(teacher([])), tmp_path / "b", **{"buffer.samples": 2})
    run = branch(changes | {"buffer.agent": "scripted, endpoint", "buffer.keep": 2})
    run = dataclasses.replace(run, task=run.task._replace(expert=tired))
    manifest = build_buffer(run)
    assert manifest["trajectories_sampled"] == 2 * 3 * 2
    assert manifest["trajectories_kept_by_origin"] == {"scripted": 1, "endpoint:teacher": 5}
    origins = {item.origin for item in load_buffer(run).step_traces}
    assert origins == set(manifest["traces_by_origin"]) == {"scripted", "endpoint:teacher"}


def policy(trunk, folder, **changes):
    return {
        "buffer.folder": str(folder),
        "buffer.agent": "checkpoint",
        "buffer.checkpoint": str(trunk.cold_start),
        "buffer.questions": 3,  # two at a time
        "buffer.samples": 4,
    } | changes


def test_a_policys_build_that_was_cut_short_goes_on_to_what_an_unbroken_one_gives(
    branch, tmp_path, trunk, capsys
):
    whole = sample_agents(branch(policy(trunk, tmp_path / "whole")))()[0]
    (path,) = (tmp_path / "whole" / "agents").glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == len(whole) == 3 * 4
    cut = tmp_path / "cut" / "agents"
    cut.mkdir(parents=True)
    (cut / path.name).write_bytes(b"".join(lines[:9]) + lines[9][:20])  # a batch of 8, and some
    about = path.with_suffix(".json")
    (cut / about.name).write_bytes(about.read_bytes())
    capsys.readouterr()
    assert sample_agents(branch(policy(trunk, tmp_path / "cut"), name="cut"))()[0] == whole
    assert "resuming: 8 of 12 trajectories are there" in capsys.readouterr().out
    for key, was, now in (("buffer.temperature", 1.0, 0.5), ("rollout.step_tokens", 12, 11)):
        other = branch(policy(trunk, tmp_path / "cut", **{key: now}), name="other")
        name = key.removeprefix("buffer.")
        with pytest.raises(ValueError, match=rf"sampled with another {name} \({was}, now {now}\)"):
            sample_agents(other)


def test_two_policies_of_one_buffer_are_sampled_with_other_random_numbers(branch, tmp_path, trunk):
    copy = shutil.copytree(trunk.cold_start, tmp_path / "copy")
    both = {"buffer.checkpoint": f"{trunk.cold_start},{copy}", "buffer.questions": 1}
    traces = sample_agents(branch(policy(trunk, tmp_path / "b", **both)))()[0]
    steps = [trace.steps for trace in traces]
    assert len(steps) == 2 * 4 and steps[:4] != steps[4:]  # of the same weights and question


def test_what_is_there_of_a_finished_policy_loads_no_weights_also_with_other_keys_of_a_call(
    branch, tmp_path, trunk
):
    run = branch(policy(trunk, tmp_path / "b"))
    first = sample_agents(run)()[0]
    (path,) = (tmp_path / "b" / "agents").glob("*.jsonl")
    before = path.read_bytes()
    per_call = {"rollout.slots": 4, "rollout.absorb_chunk": 8, "rollout.driver": "jit"}
    assert not any(getattr(run.settings.rollout, k.split(".")[1]) == v for k, v in per_call.items())
    other = branch(policy(trunk, tmp_path / "b", **per_call), name="other")
    assert sample_agents(other)()[0] == first and path.read_bytes() == before
    about = json.loads(path.with_suffix(".json").read_text())
    assert len(TrajectoryFile(path.parent, path.stem).begin(about)) == 12


def test_a_workdir_that_says_nothing_of_another_model_is_sampled_as_the_runs_own(trunk):
    loaded = load_buffer_policy(trunk, trunk.cold_start)
    assert loaded.sampler is trunk.sampler and loaded.tokens is trunk.tokens


def other_tokenizer(trunk, folder, *, config):
    """A cold start with the trunk's weights and the ids of two words swapped, or its workdir."""
    made = folder / "coldstart" if config else folder
    shutil.copytree(trunk.cold_start, made)
    path = made / "tokenizer" / "tokenizer.json"
    spec = json.loads(path.read_text())
    vocab = spec["model"]["vocab"]
    vocab[-1], vocab[-2] = vocab[-2:]
    path.write_text(json.dumps(spec))
    if config:
        shutil.copytree(made / "checkpoints", folder / "checkpoints")
        stored = json.loads(json.dumps(dataclasses.asdict(trunk.settings)))
        stored["sft"]["folder"] = ""
        (folder / "config.json").write_text(json.dumps(stored))
    return load_tokens(made / "tokenizer")


@pytest.mark.parametrize("config", [True, False])
def test_a_policy_of_the_same_shape_and_another_tokenizer_is_sampled_with_its_own(
    trunk, tmp_path, config
):
    tokens = other_tokenizer(trunk, tmp_path / "other", config=config)
    assert tokens.fingerprint != trunk.tokens.fingerprint
    loaded = load_buffer_policy(trunk, tmp_path / "other")
    assert loaded.tokens.fingerprint == tokens.fingerprint
    assert loaded.sampler is not trunk.sampler


def test_a_workdir_with_the_runs_tokenizer_is_sampled_by_the_runs_own_program(trunk, tmp_path):
    other_tokenizer(trunk, tmp_path / "other", config=True)
    folder = tmp_path / "other" / "coldstart" / "tokenizer"
    shutil.copytree(trunk.cold_start / "tokenizer", folder, dirs_exist_ok=True)
    assert load_buffer_policy(trunk, tmp_path / "other").sampler is trunk.sampler


def test_a_hugging_face_folder_fills_the_buffer_with_its_own_tokenizer_and_weights(
    branch, tmp_path, trunk
):
    folder = tmp_path / "teacher"
    teacher = make_model("qwen3", vocab_size=320)
    save_model(teacher, folder)
    build_tokenizer(folder, [" ".join(tags())] * 2, vocab_size=320)
    greedy = {"buffer.temperature": 0.0, "buffer.samples": 1, "buffer.checkpoint": str(folder)}
    room = {"rollout.prompt_tokens": 90, "rollout.max_tokens": 170, "rl.buckets": (170,)}
    run = branch(policy(trunk, tmp_path / "b", **greedy, **room))
    traces, _ = sample_agents(run)()
    tokens = load_tokens(folder, vocab_size=320)
    assert [trace.origin for trace in traces] == 3 * [f"checkpoint:{folder}"]
    for trace in traces:
        prompt = torch.tensor([tokens.prompt_ids(run.system, trace.question)])
        with torch.no_grad():
            found = teacher.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=run.settings.rollout.step_tokens,
                do_sample=False,
            )
        written = [int(i) for i in found[0, prompt.shape[1] :] if int(i) not in tokens.eos_ids]
        assert "".join(trace.steps) == tokens.decode(written) != ""


def test_questions_that_are_too_long_for_a_policys_own_tokenizer_are_left_out_for_it_alone(
    branch, tmp_path, trunk, capsys
):
    folder = tmp_path / "teacher"
    save_model(make_model("qwen3", vocab_size=320), folder)
    build_tokenizer(folder, [" ".join(tags())] * 2, vocab_size=320)
    tokens = load_tokens(folder, vocab_size=320)
    asked = load_questions(trunk.questions[trunk.settings.buffer.split])[:3]
    lengths = [len(tokens.prompt_ids(trunk.system, question.question)) for question in asked]
    limit = max(lengths) - 1
    kept = [q.id for q, length in zip(asked, lengths, strict=True) if length <= limit]
    assert 0 < len(kept) < 3
    changes = policy(trunk, tmp_path / "b", **{"buffer.samples": 1, "buffer.keep": 1}) | {
        "buffer.checkpoint": f"{trunk.cold_start},{folder}", "rollout.prompt_tokens": limit,
        "rollout.max_tokens": limit + 80, "rl.buckets": (limit + 80,),
    }  # fmt: skip
    traces, info = sample_agents(branch(changes))()
    by_teacher = [each.question_id for each in traces if each.origin == f"checkpoint:{folder}"]
    assert by_teacher == kept and len(traces) == 3 + len(kept)
    assert info == {"too_long": {str(folder): 3 - len(kept)}}
    assert (
        f"rollout.prompt_tokens={limit}: {3 - len(kept)} of the 3 questions of "
        f"{trunk.settings.buffer.split!r} have a longer prompt, "
    ) in (said := capsys.readouterr().out)
    assert f"of {limit + 1} tokens of buffer.checkpoint='{folder}'; they are left out" in said
    refusing = branch(changes | {"task.too_long": "fail"}, name="refusing")
    with pytest.raises(ValueError, match=rf"prompt_tokens={limit}: .*set task.too_long='skip'"):
        sample_agents(refusing)
