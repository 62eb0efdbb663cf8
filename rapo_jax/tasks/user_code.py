"""The task, the reward and the tools that a config names, imported and checked."""

from __future__ import annotations

import dataclasses

from rapo_jax.config import Settings
from rapo_jax.config.rules import check_unscripted
from rapo_jax.tasks import find_reward, find_task
from rapo_jax.tasks.schema import Task
from rapo_jax.text.protocol import user_tool_names
from rapo_jax.tools.mcp_servers import load_mcp_tools
from rapo_jax.tools.user import UserTool, load_user_tools


def load_user_code(settings: Settings) -> tuple[Task, dict[str, UserTool]]:
    """The task, and the user's tools and those of MCP servers by name.

    Raises:
        ValueError: a path cannot be imported or is of another kind, or the settings need a scripted
            agent that the task lacks.
    """
    t = settings.tools
    tools = load_user_tools(t)
    tools |= load_mcp_tools(t.mcp, tools, output_chars=t.output_chars)
    task_settings = settings.task
    find_reward(
        task_settings.reward, metric=task_settings.metric, user_tools=user_tool_names(tools)
    )
    task = find_task(task_settings.name)
    if not task.scripted:
        check_unscripted(settings)
    return task, tools


def task_parameters(settings: Settings) -> dict[str, object]:
    """Keyword arguments of the task's `make_world`."""
    if ":" in settings.task.name:
        return dict(settings.task.user_arguments)
    parameters = dataclasses.asdict(getattr(settings.task, settings.task.name))
    if settings.task.name == "dataset" and settings.suites_alone:
        parameters |= {"train": "", "eval": ""}
    return parameters
