"""Protocols: how calls, observations and answers are written and parsed (config.protocol).

`rapo` is ours (protocol.py). The others are those of published systems, to evaluate and train their
checkpoints as they were made: their templates are part of a checkpoint and exact to the letter.
"""

from __future__ import annotations

import dataclasses
import functools
import os.path
import re
from collections.abc import Callable, Mapping
from typing import Literal

from rapo_jax.io.user_code import load
from rapo_jax.text.protocol import CALLS, INVALID, TAG_NAMES, Step, neutralise, parse_step, stops
from rapo_jax.text.tool_calls import TOOLS, hermes_calls

AnswerRule = Literal["tagged", "boxed"] | Callable[[str], str | None]
"""The answer of a response: that of the paper's format, a bad one of which has the reward -1; the
last box; or a function, whose None is no answer. Without an answer the reward is 0."""


_BOX = re.compile(r"\\(?=(?:boxed|fbox)(?![A-Za-z]))")
_LEAST_REPLY = 16
"""Characters by which a corrective reply that was cut off is known."""


@dataclasses.dataclass(frozen=True)
class BetweenReplies:
    """An answer rule that is not shown the environment's corrective replies.

    The parts of a response between them are read one by one, the last one first, until `rule` finds
    an answer: a tag that was not closed before a reply does not reach over it.
    """

    rule: Callable[[str], str | None]
    reply: str

    def __call__(self, text: str) -> str | None:
        parts = reversed(self._parts(text))
        return next((answer for part in parts if (answer := self.rule(part)) is not None), None)

    def _parts(self, text: str) -> list[str]:
        """A reply that rollout.observation_tokens cut off ends where the text differs from it."""
        first, *others = text.split(self.reply[:_LEAST_REPLY])
        rest = self.reply[_LEAST_REPLY:]
        return [first, *(part[len(os.path.commonprefix([part, rest])) :] for part in others)]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One protocol; all texts are written as they are."""

    name: str
    stops: tuple[str, ...]
    """Texts that end a step; none of a protocol with `turns`: those of the chat template."""
    parse: Callable[[str], Step | list[Step]]
    """A step's text -> its call: the name of a tool and the content. 'stop' and 'answer' call
    nothing; INVALID and a tool that the run lacks get `corrective`. A list: calls of a turn, which
    are all made. A step that calls nothing, and an empty list, end the row."""
    tags: tuple[str, ...]
    """Names of tags that foreign text must not write: a space is put behind their `<`."""
    answer_stop: str = ""
    """That of `stops` which ends the row; '' where only end-of-sequence does."""
    before: str = "<result> "
    """What precedes an observation."""
    after: str = "</result>"
    between: str = ""
    """What separates the observations of one turn."""
    escape: Callable[[str], str] = str
    """How the text of an observation is written; tags and chat tokens in it are parted before."""
    system: str | None = None
    """None: the task's; '' leaves that turn to the chat template. prompt.system goes first."""
    user: tuple[str, str] = ("", "")
    """What precedes and follows a question in the user's turn."""
    at_eos: Literal["end", "parse"] = "end"
    """End-of-sequence, and a step of rollout.step_tokens, end the row; or the environment parses
    the step and replies to it. An end-of-sequence token that gets a reply is not kept."""
    corrective: str = ""
    """The reply to an INVALID step, without `before` and `after`."""
    repeated: str = ""
    """The reply to a call that the row has made before; '' makes it again."""
    no_calls_left: str = "error: no calls are left; answer without"
    """The reply to a call beyond rollout.max_calls, where a row may make one."""
    refused_turns: int = 0
    """Steps beyond rollout.max_calls whose calls get that reply; the next one ends the row."""
    condenses: bool = False
    """Whether the model reads the hits of a search in a prompt of their own, and what it makes of
    them is the observation. Such a protocol is evaluated, not trained."""
    answers: AnswerRule = "tagged"
    """A function reads the policy's text without `corrective`, see `BetweenReplies`."""
    passage: Callable[[int, str, str], str] | None = None
    """(number from 1, title, text) of a search's hit -> its line; None: `[1] title: text`."""

    turns: bool = False
    """Whether `before`, `between` and `after` hold chat tokens, as observations in turns of their
    own do, in a chat template that lists tools. `corrective` is then one of the observations."""
    template_arguments: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """Further arguments of the chat template."""

    def __post_init__(self) -> None:
        if self.answer_stop and self.answer_stop not in self.stops:
            raise ValueError(
                f"Protocol {self.name!r}: answer_stop={self.answer_stop!r} is none of "
                f"stops={self.stops!r}"
            )
        reply = self.written(self.corrective) if self.turns else self.corrective
        rule = self.answers.rule if isinstance(self.answers, BetweenReplies) else self.answers
        if not isinstance(rule, str):
            object.__setattr__(self, "answers", BetweenReplies(rule, reply) if reply else rule)
        elif _BOX.search(reply) if rule == "boxed" else "<answer>" in reply:
            raise ValueError(
                f"Protocol {self.name!r}: corrective={self.corrective!r} holds what "
                f"answers={rule!r} reads as an answer; word it without that"
            )

    def written(self, observation: str) -> str:
        """Foreign text without tags of the protocol, as it is written into the trajectory.

        Where the answer of a response is its last box, foreign text has none: a space parts its
        command.
        """
        if self.answers == "boxed":
            observation = _BOX.sub(r"\\ ", observation)
        return self.escape(neutralise(observation, self.tags))

    def render(self, *observations: str) -> str:
        """The observations of a step as they are written into the trajectory."""
        return f"{self.before}{self.between.join(map(self.written, observations))}{self.after}"


def rapo(user_tools: tuple[str, ...] = ()) -> Protocol:
    """Ours, with the tags of user tools."""
    return Protocol(
        name="rapo",
        stops=stops(user_tools),
        parse=functools.partial(parse_step, user_tools=user_tools),
        tags=(*TAG_NAMES, *user_tools),
        answer_stop="</answer>",
    )


_SEARCH_R1_ACTION = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def _search_r1_step(text: str) -> Step:
    """The first action of a step."""
    action = _SEARCH_R1_ACTION.search(text)
    return Step(action[1], action[2].strip()) if action else Step(INVALID, "")


def _search_r1_passage(number: int, title: str, text: str) -> str:
    return f'Doc {number}(Title: "{title}") {text}'


def last_answer(text: str) -> str | None:
    """The content of the last `<answer>...</answer>`."""
    found = _ANSWER.findall(text)
    return found[-1].strip() if found else None


SEARCH_R1 = Protocol(
    name="search_r1",
    stops=("</search>", "</answer>"),
    answer_stop="</answer>",
    parse=_search_r1_step,
    tags=("think", "search", "information", "answer"),
    before="\n\n<information>",
    after="</information>\n\n",
    system="",
    user=(
        "Answer the given question. You must conduct reasoning inside <think> and </think> first "
        "every time you get new information. After reasoning, if you find you lack some knowledge, "
        "you can call a search engine by <search> query </search> and it will return the top "
        "searched results between <information> and </information>. You can search as many times "
        "as your want. If you find no further external knowledge needed, you can directly provide "
        "the answer inside <answer> and </answer>, without detailed illustrations. For example, "
        "<answer> Beijing </answer>. Question: ",
        "\n",
    ),
    at_eos="parse",
    corrective=(
        "\nMy previous action is invalid. If I want to search, I should put the query between "
        "<search> and </search>. If I want to give the final answer, I should put the answer "
        "between <answer> and </answer>. Let me try again.\n"
    ),
    answers=last_answer,
    passage=_search_r1_passage,
)
"""Search-R1 (arXiv 2503.09516): search alone, no system prompt, the last answer counts."""

TOOL_STAR = Protocol(
    name="tool_star",
    stops=("</search>", "</python>"),
    parse=parse_step,
    tags=TAG_NAMES,
    before="<result>\n",
    after="\n</result>",
    system=(
        "\nYou are a helpful assistant that can solve the given question step by step with the "
        "help of the wikipedia search tool and python interpreter tool. Given a question, you need "
        "to first think about the reasoning process in the mind and then provide the answer. "
        "During thinking, you can invoke the wikipedia search tool to search and python "
        "interpreter tool to calculate the math problem for fact information about specific topics "
        "if needed. The reasoning process and answer are enclosed within <think> </think> and "
        "<answer> </answer> tags respectively, and the search query and result are enclosed within "
        "<search> </search> and <result> </result> tags respectively. For example, <think> This is "
        "the reasoning process. </think> <search> search query here </search> <result> search "
        "result here </result> <think> This is the reasoning process. </think> <python> python "
        "code here </python> <result> python interpreter result here </result> <think> This is the "
        "reasoning process. </think> <answer> The final answer is \\[ \\boxed{answer here} \\] "
        "</answer>. In the last part of the answer, the final exact answer is enclosed within "
        "\\boxed{} with latex format.\n"
    ),
)
"""Tool-Star (arXiv 2505.16410): search and python; its reward's format is the paper's."""

CHAT_TOOLS = Protocol(
    name="chat_tools",
    stops=(),
    parse=hermes_calls,
    tags=("think", "tool_call", "tool_response"),
    system="Use the tools to answer, and give the exact final answer in \\boxed{}.",
    corrective='error: expected {"name": ..., "arguments": {...}} of one of the tools',
    answers="boxed",
    turns=True,
    template_arguments={"tools": TOOLS},
)
"""Tool calls of the checkpoint's chat template, several in a turn: `chat_turns.with_turns`."""

_SEARCH_O1_CALL = re.compile(r"<\|begin_search_query\|>(.*?)<\|end_search_query\|>", re.DOTALL)


def _search_o1_step(text: str) -> list[Step]:
    """The last query of a step; without one the row ends."""
    queries = [query.strip() for query in _SEARCH_O1_CALL.findall(text)]
    return [Step("search", queries[-1])] if queries and queries[-1] else []


SEARCH_O1 = Protocol(
    name="search_o1",
    stops=("<|end_search_query|>",),
    parse=_search_o1_step,
    tags=("think",),
    before="\n\n<|begin_search_result|>",
    after="<|end_search_result|>\n\n",
    system="",
    user=(
        "Answer the question below; reason step by step. When a fact is missing, search for it: "
        "write <|begin_search_query|> your query <|end_search_query|>, and what the documents say "
        "of it follows as <|begin_search_result|> ... <|end_search_result|>. You may search "
        "several times; read each result, and continue to reason. A question of several parts "
        "takes a search for each. When you know the answer, give it in \\boxed{}.\n\nQuestion:\n",
        "\n",
    ),
    repeated="You have made this search before; see its result above.",
    no_calls_left="The limit of searches is reached; you may not search.",
    refused_turns=5,
    condenses=True,
    answers="boxed",
)
"""Search-o1 (arXiv 2501.05366): a model as it is, prompted; the wording of its prompts is ours."""

PROTOCOLS = {p.name: p for p in (rapo(), SEARCH_R1, SEARCH_O1, TOOL_STAR, CHAT_TOOLS)}


def find_protocol(name: str, user_tools: tuple[str, ...] = ()) -> Protocol:
    """A protocol of PROTOCOLS, or a user's by config path, such as 'my_protocol:PROTOCOL'.

    Raises:
        ValueError: the path cannot be imported or is no Protocol, or there are user tools that a
            published protocol cannot call.
    """
    if name == "rapo":
        return rapo(user_tools)
    if ":" in name:
        protocol = load(name, key="protocol")
        if not isinstance(protocol, Protocol):
            raise ValueError(
                f"protocol={name!r}: it is a {type(protocol).__name__} and no "
                "rapo_jax.text.protocols.Protocol"
            )
        return protocol
    if user_tools:
        raise ValueError(
            f"protocol={name!r}: its checkpoints know no tools {', '.join(user_tools)}; leave them "
            f"out of tools.user_tools, where {' and '.join(CALLS)} may be replaced"
        )
    return PROTOCOLS[name]
