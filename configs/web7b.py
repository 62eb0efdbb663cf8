"""RAPO on web questions, Qwen2.5-7B-Instruct (paper, sec. 5.1 and its table of web tasks).

    export SERPER_API_KEY=…
    bash launch/prepare.sh configs/web7b.py
    python -m rapo_jax.main --config=configs/web7b.py --workdir=runs/web7b

In a container or on a TPU slice --env=SERPER_API_KEY hands the key on (docs/launch.md).

Differences from qwen7b.py: 128 questions x 4 rollouts, 6 calls, 10 passages from a web search,
2000 questions of ASearcher and 200 of WebDancer. The paper does not say which 2000; these are the
first. A search costs money, but only once: the cache keeps all results.

Hardware: 8 GPUs of 80 GB, or a TPU slice such as v5e:8x8. Expected memory of a GPU as for
qwen7b.py, by arithmetic (not measured): 34 GB.
Paper's average of its web table, SimpleQA, GAIA by level, WebWalkerQA by difficulty and
BrowseComp: 17.0 (GRPO 15.1).
"""

from ml_collections import ConfigDict

from rapo_jax.configs import qwen7b


def get_config() -> ConfigDict:
    c = qwen7b.get_config()
    data = qwen7b.DATA_DIR
    c.task.dataset.update(
        train="asearcher:base[:2000],webdancer:train",
        eval="simpleqa:test[:200]",
    )
    c.evaluate.suites = ("simpleqa", "gaia", "webwalkerqa_web", "browsecomp")
    c.tools.passages = 10
    c.tools.search.update(
        kind="serper", url="", key_variable="SERPER_API_KEY", cache=f"{data}/web_search.sqlite"
    )
    c.rollout.update(questions=128, group_size=4, n_hybrid=2, max_calls=6)
    c.buffer.files = (f"{data}/traces/aepo_qwen3_14b_web.jsonl",)
    return c
