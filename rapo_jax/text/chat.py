"""The chat template of a tokenizer: the prompt around a question, and what it opens of the answer.

The template is rendered once for a system prompt, with a placeholder for the question. Only its own
text may hold control tokens: a question is plain text, whatever it spells.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from _typeshed import TraceFunction
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

MAX_LINES = 200_000
"""Lines of its compiled code that a template may run; those of the known models run hundreds."""
QUESTION = "\ue000question\ue000"
_DATE = "26 Jul 2024"
"""The date that Llama 3's templates write where they know none. Llama 3.2's would write today's, so
that a run went on with another prompt on the next day."""
_OPENED = re.compile(r"<think>[^<]*(?:</think>\s*)?\Z")
_SWITCH = re.compile(r"\b(\w+) is (?:not )?defined")
_FIXED = ("messages", "conversation", "add_generation_prompt", "tools", "documents", "tokenize")


class Frame(NamedTuple):
    """The prompt of any question: ids of control tokens, plain text, and None for the question."""

    parts: tuple[list[int] | str | None, ...]
    strip: Callable[[str], str]
    """What the template does to white space around a question."""

    def ids(self, question: str, encode: Callable[[str], list[int]]) -> list[int]:
        """Token ids; plain text and question are encoded together, as tokenizers do."""
        ids: list[int] = []
        text = ""
        for part in self.parts:
            if isinstance(part, list):
                ids += encode(text) + part if text else part
                text = ""
            else:
                text += self.strip(question) if part is None else part
        return ids + encode(text) if text else ids


def make_frame(
    tokenizer: PreTrainedTokenizerFast,
    exact: Tokenizer,
    system: str,
    *,
    arguments: Mapping[str, object],
    key: str,
) -> Frame:
    """The template rendered for a system prompt; an empty one leaves that turn to the template.

    Raises:
        ValueError: the template fails, runs for too long, or leaves the question out; names `key`.
    """

    def render(question: str) -> str:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        return rendered(tokenizer, messages, arguments=arguments, key=key)

    pieces = render(QUESTION).split(QUESTION)
    if len(pieces) < 2:
        raise ValueError(
            f"{key}: its chat template leaves the user's message out or changes it; use the "
            "template of an instruction-tuned model"
        )
    spaced = render(f" {QUESTION} ").split(QUESTION)
    left, right = pieces[0] == spaced[0], pieces[1] == spaced[1]
    strip = {(True, True): str.strip, (True, False): str.lstrip, (False, True): str.rstrip}
    parts: list[list[int] | str | None] = []
    for piece in pieces:
        parts += [None, *split_control(exact, piece)] if parts else split_control(exact, piece)
    return Frame(tuple(parts), strip.get((left, right), str))


def rendered(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Mapping[str, object]],
    *,
    arguments: Mapping[str, object],
    key: str,
) -> str:
    """A chat as its template writes it, up to where the assistant's next turn begins.

    Raises:
        ValueError: the template fails or runs for too long; names `key`.
    """
    from jinja2 import TemplateError

    apply: Callable[..., object] = tokenizer.apply_chat_template
    try:
        with limited_lines(MAX_LINES):
            given = {"date_string": _DATE, **arguments}
            text = apply(messages, tokenize=False, add_generation_prompt=True, **given)
    except (TemplateError, TypeError, RuntimeError) as error:
        roles = ", ".join(str(message["role"]) for message in messages)
        raise ValueError(
            f"{key}: its chat template fails for messages of {roles} ({error}); fix the template, "
            "or set prompt.template_arguments"
        ) from None
    assert isinstance(text, str)
    return text


def split_control(exact: Tokenizer, text: str) -> Iterator[list[int] | str]:
    """Text of the template as its added tokens, and the plain text between them."""
    added = exact.get_added_tokens_decoder()
    encoding = exact.encode(text, add_special_tokens=False)
    begin = 0
    for i, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
        if i in added:
            yield from filter(None, [text[begin:start]])
            yield [i]
            begin = stop
    yield text[begin:]


def opened_text(prompt: str) -> str:
    """The beginning of the response that the template itself wrote at the end of a prompt.

    `<think>` of models that always think, or an empty thought of those that are kept from it.
    """
    match = _OPENED.search(prompt)
    return match[0] if match else ""


def without_opening(response: str, opened: str) -> str:
    """A written response as it continues what the template opened."""
    if response.startswith(opened):
        return response.removeprefix(opened)
    begins = opened.strip() == "<think>" and response.lstrip().startswith("<think>")
    return response.lstrip().removeprefix("<think>").lstrip() if begins else response


def known_arguments(arguments: Mapping[str, object], template: str) -> dict[str, object]:
    """Those of `prompt.template_arguments` that the template reads."""
    words = set(re.findall(r"\w+", template)).difference(_FIXED)
    return {name: value for name, value in arguments.items() if name in words}


def check_arguments(arguments: Mapping[str, object], template: str) -> None:
    """Raises ValueError unless the template reads all of `prompt.template_arguments`."""
    unknown = sorted(arguments.keys() - known_arguments(arguments, template).keys())
    if unknown:
        switches = sorted(set(_SWITCH.findall(template)).difference(_FIXED))
        raise ValueError(
            f"prompt.template_arguments={dict(arguments)!r}: the chat template has no switch "
            f"{unknown[0]!r}; it has {', '.join(switches) or 'none'}"
        )


@contextmanager
def limited_lines(most: int) -> Iterator[Sequence[int]]:
    """Limits templates to `most` lines of code; raises RuntimeError inside one that runs longer.

    Yields a list whose only number is that of the lines run so far.
    """
    lines = [0]

    def trace(frame: FrameType, event: str, arg: object) -> TraceFunction | None:
        if frame.f_code.co_filename != "<template>":
            return None
        lines[0] += 1
        if lines[0] > most:
            raise RuntimeError(f"it runs for more than {most} lines")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)
