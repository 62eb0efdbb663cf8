"""Questions, answers and outcome rewards; the table TASKS has one row for each task family."""

from __future__ import annotations

from rapo_jax.io.user_code import load
from rapo_jax.tasks import chains, chains_agents, chains_text, dataset
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
        random_retrieved_step=chains_text.random_retrieved_step,
        injector=chains_text.injector,
        retrieved_decision=chains_agents.retrieved_decision,
        decision=chains_agents.decision,
        can_follow=chains_agents.can_follow,
        system_prompt=chains.SYSTEM_PROMPT,
        kinds=chains.KINDS,
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
