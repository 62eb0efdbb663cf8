"""The table of all suites with the paper's numbers, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rapo_jax.io.jsonl import JsonObject, as_number
from rapo_jax.io.tables import markdown_table
from rapo_jax.suites.paper import AVERAGE, AVERAGED, METHODS, Reported, reported
from rapo_jax.suites.scores import FAILURES, RIGHT
from rapo_jax.suites.summary import Summary

DASH = "–"
OTHERS = ("exact", "f1", "contains", "math", "judge")
"""Metrics that are shown in addition to a suite's metric."""
RULES = {
    "official": "as the papers' evaluation scores: the last box of a response, of several gold "
    "answers the last, maths by the string rules of MATH",
    "strict": "as the outcome reward does: a well-formed response's box, the best gold answer, "
    "maths by equivalence",
}


def table(suites: Mapping[str, Summary]) -> str:
    """Suites by name, as in result.json, as a page of Markdown: scores, failures, groups."""
    pages = [_header(suites), _scores(suites), "Failures by kind, of all samples:", _kinds(suites)]
    if grouped := _groups(suites):
        pages += ["Scores by difficulty or type:", grouped]
    return "\n\n".join(pages) + "\n"


def average(suites: Mapping[str, JsonObject]) -> float | None:
    """Mean score over the paper's ten suites, None unless all have one, by one rule of scoring."""
    if len({suites.get(name, {}).get("scoring") for name in AVERAGED}) > 1:
        return None
    scores = [as_number(suites.get(name, {}).get("score")) for name in AVERAGED]
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if len(known) == len(AVERAGED) else None


def _header(suites: Mapping[str, Summary]) -> str:
    each = list(suites.values())
    rules = "; ".join(
        f"{rule}: {RULES[rule]}" for rule in dict.fromkeys(x["scoring"] for x in each)
    )
    weights = ", ".join(dict.fromkeys(x["weights"] for x in each))
    backbones = ", ".join(dict.fromkeys(x["backbone"] for x in each if x["backbone"]))
    methods = ", ".join(
        METHODS.get(name, name) for name in dict.fromkeys(x["method"] for x in each)
    )
    return "\n".join(
        [
            "# Suites",
            "",
            f"Weights: {weights}. Without retrieval. In percent, with 95 % intervals over "
            "questions (Wilson for pass@1 and maths, bootstrap for the rest); calls and tokens are "
            "means of a sample. The judge's score is of the samples in brackets: those with a "
            "verdict.",
            f"Scoring: {rules}.",
            f"Paper: {methods} on {backbones or 'another shape than those of its backbones'}, and "
            "the best of its other methods; a dash where it has no figure. It scores maths by a "
            "judge, all else by token F1.",
        ]
    )


def _scores(suites: Mapping[str, Summary]) -> str:
    several = any(x["samples"] > 1 for x in suites.values())
    mixed = len({x["scoring"] for x in suites.values()}) > 1
    others = {name for x in suites.values() for name in x["scores"]}
    if any(x["unjudged"] for x in suites.values()):
        others.add("judge")
    head = [
        "suite", "questions", "metric", *(["scoring"] * mixed), "score", "pass@1",
        *(["avg@k, pass@k"] * several),
        *(name for name in OTHERS if name in others), "calls", "tokens", "paper",
        "paper's best other",
    ]  # fmt: skip
    rows = [cells(name, x) | {"avg@k, pass@k": _rates(x)} for name, x in suites.items()]
    if (mean := average(suites)) is not None:
        x = suites[AVERAGED[0]]
        same, best = paper_cells(reported(x["backbone"], AVERAGE, method=x["method"]))
        name = f"average of the {len(AVERAGED)} of the paper"
        rows.append({"suite": name, "score": percent(mean), "paper": same, head[-1]: best})
    return markdown_table(head, [[row.get(column, "") for column in head] for row in rows])


def cells(name: str, x: JsonObject) -> dict[str, str]:
    """The row of a suite: column -> text; a dash for whatever its summary does not hold."""
    same, best = paper_cells(reported(str(x.get("backbone")), name, method=str(x.get("method"))))
    scores, kinds = (y if isinstance(y := x.get(k), Mapping) else {} for k in ("scores", "kinds"))

    def number(value: object, digits: int) -> str:
        return DASH if (y := as_number(value)) is None else f"{y:.{digits}f}"

    def share(key: str, interval: object) -> str:
        pair = interval if isinstance(interval, list | tuple) and len(interval) == 2 else ()
        bounds = [y for y in map(as_number, pair) if y is not None]
        return percent(as_number(x.get(key)), bounds if len(bounds) == 2 else None)

    return {
        "suite": name,
        **{key: y if isinstance(y := x.get(key), str) else DASH for key in ("metric", "scoring")},
        "score": share("score", x.get("interval")),
        "pass@1": share("pass@1", x.get("pass@1_interval")),
        **{metric: percent(as_number(scores.get(metric))) for metric in OTHERS},
        "judge": _judge(as_number(scores.get("judge")), x),
        "questions": number(x.get("questions"), 0),
        "calls": number(x.get("calls"), 1),
        "tokens": number(x.get("tokens"), 0),
        "paper": same,
        "paper's best other": best,
        **{kind: number(kinds.get(kind), 0) for kind in (RIGHT, *FAILURES)},
    }


def _judge(score: float | None, x: JsonObject) -> str:
    """The judge's score, and of how many samples it is: those with a verdict."""
    questions, samples, unjudged = map(as_number, map(x.get, ("questions", "samples", "unjudged")))
    if questions is None or samples is None or unjudged is None or (score, unjudged) == (None, 0):
        return percent(score)
    total = questions * samples
    return f"{percent(score)} ({total - unjudged:.0f} of {total:.0f})"


def paper_cells(paper: Reported | None) -> tuple[str, str]:
    """The paper's score of the same method, and its best other one with its name."""
    if paper is None:
        return DASH, DASH
    same = DASH if paper.same is None else f"{paper.same:.1f}"
    return same, f"{paper.best:.1f} {paper.best_method}"


def _kinds(suites: Mapping[str, Summary]) -> str:
    head = ["suite", RIGHT, *FAILURES]
    rows = [cells(name, x) for name, x in suites.items()]
    return markdown_table(head, [[row[column] for column in head] for row in rows])


def _groups(suites: Mapping[str, Summary]) -> str:
    rows = [
        [
            name,
            group,
            str(of["questions"]),
            percent(of["score"]),
            *paper_cells(reported(x["backbone"], name, method=x["method"], group=group)),
        ]  # fmt: skip
        for name, x in suites.items()
        for group, of in x["groups"].items()
    ]
    head = ["suite", "group", "questions", "score", "paper", "paper's best other"]
    return markdown_table(head, rows) if rows else ""


def _rates(x: Summary) -> str:
    k = x["samples"]
    return DASH if k == 1 else f"{percent(x[f'avg@{k}'])}, {percent(x[f'pass@{k}'])} (k={k})"


def percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """A share in percent with one digit, and its interval if there is one."""
    if value is None:
        return DASH
    bounds = "" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    return f"{100 * value:.1f}{bounds}"
