"""Where a config comes from: file, name, workdir, override files and flags, and which one wins."""

from __future__ import annotations

import json
import re

import pytest

from rapo_jax.config import KEYS
from rapo_jax.config.read import read_settings
from rapo_jax.config.sources import CONFIGS, as_yaml, differences, resolve

SMALL = "tests/small.py"


def settings_of(*flags, overrides=(), config=SMALL):
    pairs = [tuple(flag.split("=", 1)) for flag in flags]
    return read_settings(resolve(config, overrides=overrides, flags=pairs).config)


def refused(*flags, **how):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        settings_of(*flags, **how)
    return str(caught.value)


def test_the_last_flag_of_a_key_wins_also_for_a_tuple():
    found = settings_of("stages=('sft','rl')", "rl.m=0.3", "stages=('report',)", "rl.m=0.1")
    assert (found.stages, found.rl.m) == (("report",), 0.1)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("seed=3", 3),
        ("rl.m=1e-3", 1e-3),
        ("rl.m=1", 1.0),
        ("log.tensorboard=true", True),
        ("log.tensorboard=False", False),
        ("prompt.system=123", "123"),
        ("rl.buckets=(96, 128)", (96, 128)),
        ("rl.buckets=[96]", (96,)),
        ("rl.buckets=96", (96,)),
        ("stages=report", ("report",)),
        ("tools.user_tools=(('a', 'm:f'),)", (("a", "m:f"),)),
    ],
)
def test_a_flag_has_the_type_of_its_key(flag, value):
    found = settings_of(flag)
    for part in flag.partition("=")[0].split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)


def test_a_whole_group_and_a_key_of_a_user_task_can_be_set():
    task = ("task.name=m:TASK", "task.user_arguments.words=3", "task.user_arguments.deep.x=no")
    source = ("model.folder=here", "buffer.agent=checkpoint", "buffer.checkpoint=there")
    found = settings_of(*task, *source, "rl={'m': 0.1, 'a': 0.3}", "stages=('rl',)")
    assert found.task.user_arguments == {"words": 3, "deep": {"x": "no"}}
    assert (found.rl.m, found.rl.a, found.rl.steps) == (0.1, 0.3, 2)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("rl.stpes=3", "--config.rl.stpes: the config has no such key; did you mean rl.steps?"),
        ("zz.steps=3", "--config.zz.steps: the config has no such key; did you mean rl.steps?"),
        ("qqqq=3", "--config.qqqq: the config has no such key; docs/config.md has them all"),
        ("rl.steps=abc", "--config.rl.steps=abc: expected int"),
        ("rl.m=abc", "--config.rl.m=abc: expected float"),
        ("log.tensorboard=maybe", "--config.log.tensorboard=maybe: expected bool"),
        ("rl=3", "rl=3: expected a group of keys"),
    ],
)
def test_a_flag_that_cannot_be_read_is_named(flag, message):
    assert refused(flag) == message


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("[a-z]*.py")))
def test_a_config_of_the_package_is_named_without_a_path(name, monkeypatch, tmp_path):
    by_file = resolve(f"configs/{name}.py").config
    monkeypatch.chdir(tmp_path)
    assert resolve(name).config == by_file


def test_a_config_that_is_not_there_is_refused_with_the_names_that_are():
    assert re.fullmatch(
        r"--config=tinny: there is no such file; configs by name: default, .*tiny.*",
        refused(config="tinny"),
    )


def test_a_config_file_takes_what_follows_a_colon(tmp_path):
    path = tmp_path / "sized.py"
    path.write_text(
        "def get_config(size='small'):\n    return {'model': {'width': {'big': 128}[size]}}\n"
    )
    assert resolve(f"{path}:big").config["model"]["width"] == 128


def test_a_path_may_hold_a_colon(tmp_path, small_config):
    workdir = tmp_path / "2026-03-01T12:00"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(small_config()))
    resolved = resolve(None, workdir=workdir, flags=[("rl.m", "0.5")])
    assert resolved.base == str(workdir / "config.json") and resolved.config["rl"]["m"] == 0.5


def test_an_error_in_a_config_file_is_not_taken_for_a_refusal(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text("def get_config():\n    raise ValueError('mine')\n")
    with pytest.raises(RuntimeError, match="wrong.py fails"):
        resolve(str(path))


@pytest.mark.parametrize(
    ("text", "reason"),
    [("x = 1", "it has none"), ("def get_config():\n    c = {}", "it returned NoneType")],
)
def test_a_config_file_that_makes_no_config_is_refused_by_its_name(tmp_path, text, reason):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    wanted = f"--config={path}: get_config() must return a ConfigDict; {reason}"
    assert refused(config=str(path)) == wanted


NESTED = "rl:\n  m: 1e-3\n  quality: off\nseed: 7\n"
DOTTED = (
    "rl.m: 0.001\nrl.quality: off\nseed: 7\nevaluate: {suites: [gsm8k]}\nlog.tensorboard: true\n"
)


@pytest.mark.parametrize("text", [NESTED, DOTTED, json.dumps({"rl": {"m": 1e-3}, "seed": 7})])
def test_an_override_file_has_nested_or_dotted_keys_and_flags_win(tmp_path, text):
    path = tmp_path / ("x.json" if text.startswith("{") else "x.yaml")
    path.write_text(text)
    found = settings_of("seed=9", overrides=[str(path)])
    assert (found.rl.m, found.seed) == (1e-3, 9)
    if "quality" in text:
        assert found.rl.quality == "off"
    if text is DOTTED:
        assert found.evaluate.suites == ("gsm8k",) and found.log.tensorboard is True


@pytest.mark.parametrize(
    "text",
    ["True answers only", "false-start", "1.5B-run", "10.0.0.1:80", "1:30", "010", "2026-01-01"],
)
def test_a_text_that_begins_as_a_flag_or_a_number_is_a_text_in_yaml_too(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(f"prompt.system: {text}\n")
    assert settings_of(overrides=[str(path)]).prompt.system == text
    path.write_text("seed: 10\nrl.m: 0\noptimizer.b2: +9.5e-1")
    found = settings_of(overrides=[str(path)])
    assert (found.seed, found.rl.m, found.optimizer.b2) == (10, 0.0, 0.95)


def test_a_damaged_override_file_of_json_is_refused_as_one(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"rl.m": ')
    with pytest.raises(ValueError, match=rf"^--override={path}: not JSON \("):
        settings_of(overrides=[str(path)])


def test_later_override_files_win_and_an_empty_one_changes_nothing(tmp_path):
    for name, text in (("a", "seed: 1\nrl.m: 0.5"), ("b", "seed: 2"), ("c", "# nothing\n")):
        (tmp_path / f"{name}.yaml").write_text(text)
    found = settings_of(overrides=[str(tmp_path / f"{name}.yaml") for name in "abc"])
    assert (found.seed, found.rl.m) == (2, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rl: {stpes: 3}", "rl.stpes: the config has no such key; did you mean rl.steps?"),
        ("[1, 2]", "expected keys, such as rl.steps: 3"),
        ("a: b: c", "not YAML ("),
        ("rl: {m: 0.1, a: 0.2, m: 0.3}", "not YAML (m is there twice)"),
        (None, "there is no such file"),
    ],
)
def test_an_override_file_that_cannot_be_read_is_refused_by_its_name(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    if text is not None:
        path.write_text(text)
    assert refused(overrides=[str(path)]).startswith(f"--override={path}: {message}")


def test_the_printed_config_names_origins_and_is_an_override_file_of_the_same_config(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("rl.a: 0.4\n")
    resolved = resolve(SMALL, overrides=[str(path)], flags=[("rl.m", "0.1"), ("seed", "5")])
    lines = as_yaml(resolved).splitlines()
    origins = {line.partition(":")[0]: line.rpartition("  # ")[2] for line in lines}
    assert origins.keys() == KEYS.keys()
    assert (origins["rl.m"], origins["rl.a"], origins["model.width"], origins["rl.kl"]) == (
        "--config.rl.m", str(path), SMALL, "default",
    )  # fmt: skip
    assert resolved.overridden == {"rl.m", "rl.a", "seed"}
    printed = tmp_path / "printed.yaml"
    printed.write_text("\n".join(lines))
    again = resolve("default", overrides=[str(printed)])
    assert differences(again.config, resolved.config) == []
    assert read_settings(again.config) == read_settings(resolved.config)


def test_what_a_method_sets_is_named_and_is_no_override():
    flags = [("method", "tree_grpo"), ("rl.kl", "0.5")]
    resolved = resolve(SMALL, flags=flags)
    assert resolved.published == ["rollout.tree_rows=3", "rollout.branching='random'"]
    assert resolved.overridden == {"method", "rl.kl"}
    assert resolve(SMALL, flags=[("method", "grpo")]).published == []


def test_a_config_file_wins_over_what_a_method_sets(tmp_path, small_config):
    path = tmp_path / "mine.py"
    path.write_text("def get_config():\n    return {'method': 'tree_grpo', 'rl': {'kl': 0.5}}\n")
    resolved = resolve(str(path))
    assert (resolved.config["rl"]["kl"], resolved.origins["rl.kl"]) == (0.5, str(path))
    assert resolved.config["rollout"]["tree_rows"] == 3  # of the method
    stored = tmp_path / "config.json"  # where a key of the method was set to its default
    stored.write_text(json.dumps(small_config({"method": "tree_grpo", "rl.kl": 0.0})))
    assert resolve(str(stored)).config["rl"]["kl"] == KEYS["rl.kl"].value == 0.0


def test_a_stored_config_is_a_config_and_a_workdirs_own_without_one(tmp_path):
    config = resolve(SMALL, flags=[("seed", "5"), ("distributed.mode", "auto")]).config
    notes = {"commit": "abc", "config_file": "/somewhere/mine.py"}
    (tmp_path / "config.json").write_text(json.dumps(config | notes))
    for found in (
        resolve(str(tmp_path / "config.json"), flags=[("rl.m", "0.5")]),
        resolve(None, workdir=tmp_path, flags=[("rl.m", "0.5")]),
    ):
        settings = read_settings(found.config)
        assert (settings.seed, settings.rl.m) == (5, 0.5)
        assert settings.distributed.mode == "off"  # of this call's processes
        assert str(found.file) == "/somewhere/mine.py"
        assert found.overridden == {"rl.m"}


def test_a_workdir_without_a_config_needs_one(tmp_path):
    assert "--config is missing: " in refused(config=None)
    with pytest.raises(ValueError, match=r"--config is missing: .* holds no config.json yet; name"):
        resolve(None, workdir=tmp_path)
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"config\.json: cut off or damaged"):
        resolve(None, workdir=tmp_path)


def test_a_difference_is_a_dotted_key_with_both_values(small_config):
    changed = small_config({"rl.m": 0.5, "seed": 3, "rollout.slots": 4, "evaluate.rows": 2})
    assert differences(small_config(), changed) == [
        "rl.m was 0.05, is 0.5", "seed was 0, is 3",
    ]  # fmt: skip


def test_rl_steps_may_grow_and_not_shrink(small_config):
    assert differences(small_config({"rl.steps": 2}), small_config({"rl.steps": 4})) == []
    shrunk = differences(small_config({"rl.steps": 4}), small_config({"rl.steps": 2}))
    assert shrunk == ["rl.steps was 4, is 2"]


def test_keys_of_another_version_have_their_defaults_or_are_named(small_config):
    old = small_config()
    del old["evaluate"]["suites"], old["rl"]["kl"]
    assert differences(old, small_config()) == []
    assert differences(old, small_config({"rl.kl": 0.5})) == ["rl.kl was 0.0, is 0.5"]
    old["tools"]["own"] = []
    assert differences(old, small_config()) == ["tools.own was [], is None"]


PER_CALL_GROUPS = (
    "mesh",
    "distributed",
    "score",
    "export",
    "plan",
    "search_index",
    "checkpoint",
    "log",
)


def test_the_keys_that_calls_may_differ_in_are_declared_so():
    per_call = {name for name, key in KEYS.items() if key.per_call}
    assert {name for name in KEYS if name.split(".")[0] in PER_CALL_GROUPS} <= per_call
    assert {name for name in KEYS if name.startswith("evaluate.")} - per_call == {"evaluate.limit"}
    memory = {"rollout.slots", "rl.micro_tokens", "model.score_logits", "model.remat", "rl.buckets"}
    assert memory | {"stages", "tools.workers", "tools.timeout_s"} <= per_call
    training = (
        "seed",
        "method",
        "rl.m",
        "rl.steps",
        "rl.mini_batches",
        "model.dtype",
        "buffer.keep",
    )
    assert not per_call & {*training, *(k for k in KEYS if k.startswith(("optimizer.", "task.")))}
