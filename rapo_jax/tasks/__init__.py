"""Questions, answers and outcome rewards; the table TASKS has one row for each task family."""

from __future__ import annotations

from rapo_jax.io.user_code import load
from rapo_jax.tasks import (
    chains,
    chains_agents,
    chains_text,
    dataset,
    pairs,
    pairs_agents,
    pairs_text,
    synthetic,
)
from rapo_jax.tasks.reward import (
    METRICS,
    answer_of,
    check_metric,
    failure_kind,
    is_correct,
    outcome_reward,
)
from rapo_jax.tasks.schema import SPLITS, Question, Task
from rapo_jax.tasks.user import find_reward, question_task

__all__ = [
    "METRICS",
    "SPLITS",
    "TASKS",
    "Question",
    "Task",
    "answer_of",
    "check_metric",
    "failure_kind",
    "find_reward",
    "find_task",
    "is_correct",
    "outcome_reward",
    "question_task",
]

TASKS: dict[str, Task] = {
    "chains": Task(
        make_world=chains.make_world,
        questions=chains.questions,
        documents=chains.documents,
        corpus=chains_text.corpus,
        expert=chains_agents.expert,
        demonstrator=chains_agents.demonstrator,
        injector=chains_text.injector,
        retrieved_decision=synthetic.retrieved_decision,
        decision=synthetic.decision,
        can_follow=chains_agents.can_follow,
        system_prompt=chains.SYSTEM_PROMPT,
        kinds=chains.KINDS,
        calls=chains.LONGEST_CHAIN,
    ),
    "pairs": Task(
        make_world=pairs.make_world,
        questions=pairs.questions,
        documents=pairs.documents,
        corpus=pairs_text.corpus,
        expert=pairs_agents.expert,
        demonstrator=pairs_agents.demonstrator,
        injector=pairs_text.injector,
        retrieved_decision=synthetic.retrieved_decision,
        decision=synthetic.decision,
        can_follow=pairs_agents.can_follow,
        system_prompt=pairs.SYSTEM_PROMPT,
        kinds=pairs.KINDS,
        calls=pairs.MOST_CALLS,
    ),
    "dataset": dataset.unscripted_task(dataset.make_world),
}


def find_task(name: str) -> Task:
    """A task of TASKS, or a user's by config path, such as 'my_task:TASK'.

    Raises:
        ValueError: the path cannot be imported, or is no Task.
    """
    if ":" not in name:
        return TASKS[name]
    task = load(name, key="task.name")
    if not isinstance(task, Task):
        raise ValueError(
            f"task.name={name!r}: it is a {type(task).__name__} and no Task; make one with "
            "rapo_jax.tasks.question_task"
        )
    return task
