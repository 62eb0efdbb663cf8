"""configs/smoke.py: the paper's whole chain in minutes, on files in their publishers' layouts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import smoke
from rapo_jax.config.read import read_settings
from tests.launch.paper import search_server, write_data

ROOT = Path(__file__).resolve().parents[2]


def test_the_papers_chain_runs_with_small_numbers_from_the_buffer_to_the_report(tmp_path):
    data = write_data(tmp_path / "data")
    (traces,) = (data / "traces").glob("aepo*.jsonl")
    record = json.loads(traces.read_text())
    traces.write_text(
        "".join(json.dumps(record | {"question": f"Who? {i}"}) + "\n" for i in range(100))
    )
    with search_server(tmp_path) as url:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "rapo_jax.main", "--config=configs/smoke.py:qwen7b"),
                *(f"--workdir={tmp_path / 'run'}", f"--config.tools.search.url={url}"),
                "--config.retrieval.encoder_tokens=6",  # the small encoder has no more positions
                "--config.evaluate.limit=2",
            ],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": "", "RAPO_DATA": str(data)},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    noted = json.loads((run / "done.json").read_text())["stages"]
    assert noted == ["buffer", "rl", "evaluate", "report"]
    manifest = json.loads((run / "buffer" / "traces" / "manifest.json").read_text())
    assert manifest["files"][0]["records"] == 64
    result = json.loads((run / "result.json").read_text())
    assert len(result["suites"]) == 10 and result["counts"]["rl_steps"] == 2
    assert all(1 <= suite["questions"] <= 2 for suite in result["suites"].values())


@pytest.mark.parametrize(
    "name", ["tiny", "pairs", "qwen3b", "qwen7b", "llama8b", "web7b", "tests/small.py"]
)
def test_every_config_shrinks_to_one_that_works_and_keeps_what_is_small(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = smoke.get_config(name).to_dict()
    config["buffer"]["files"] = tuple(__file__ for _ in config["buffer"]["files"])
    s = read_settings(config)
    assert s.rollout.questions <= 8 and s.rl.steps <= 2 and s.rollout.max_tokens <= 1300
    assert s.buffer.file_records == 64
    assert s.rollout.prompt_tokens == {"tiny": 24, "pairs": 28, "tests/small.py": 20}.get(name, 768)


@pytest.mark.parametrize("name", ["nosuch", "nosuch.py"])
def test_an_unknown_config_is_one_line_with_those_that_are_there(name, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        smoke.get_config(name)
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "name one of default, llama8b, pairs, qwen3b, qwen7b, smollm2, tiny, web7b or the path"
        in line
    )
