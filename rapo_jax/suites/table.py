"""The table of all suites with the paper's numbers, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def average(suites: Mapping[str, Summary]) -> float | None:
    """Mean score over the paper's ten suites, None unless all of them are there."""
    if not set(AVERAGED) <= set(suites):
        return None
    return sum(suites[name]["score"] for name in AVERAGED) / len(AVERAGED)


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
    others = [name for name in OTHERS if any(name in x["scores"] for x in suites.values())]
    if any(x["unjudged"] for x in suites.values()):
        others = list(dict.fromkeys([*others, "judge"]))
    head = ["suite", "questions", "metric", "score", "pass@1", *(["avg@k, pass@k"] * several)]
    rows = []
    for name, x in suites.items():
        rows.append(
            [
                name, str(x["questions"]), x["metric"],
                percent(x["score"], x["interval"]), percent(x["pass@1"], x["pass@1_interval"]),
                *([_rates(x)] * several), *(_other(x, other) for other in others),
                f"{x['calls']:.1f}", f"{x['tokens']:.0f}",
                *paper_cells(reported(x["backbone"], name, method=x["method"])),
            ]
        )  # fmt: skip
    if (mean := average(suites)) is not None:
        x = suites[AVERAGED[0]]
        paper = reported(x["backbone"], AVERAGE, method=x["method"])
        blanks = [""] * (len(head) - 4 + len(others) + 2)
        rows.append(
            [f"average of the {len(AVERAGED)} of the paper", "", "", percent(mean), *blanks,
             *paper_cells(paper)]
        )  # fmt: skip
    return markdown_table([*head, *others, "calls", "tokens", "paper", "paper's best other"], rows)


def paper_cells(paper: Reported | None) -> tuple[str, str]:
    """The paper's score of the same method, and its best other one with its name."""
    if paper is None:
        return DASH, DASH
    same = DASH if paper.same is None else f"{paper.same:.1f}"
    return same, f"{paper.best:.1f} {paper.best_method}"


def _kinds(suites: Mapping[str, Summary]) -> str:
    kinds = (RIGHT, *FAILURES)
    rows = [[name, *(str(x["kinds"][kind]) for kind in kinds)] for name, x in suites.items()]
    return markdown_table(["suite", *kinds], rows)


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


def _other(x: Summary, name: str) -> str:
    """A metric beside the suite's."""
    score = x["scores"].get(name)
    if name != "judge" or (score is None and not x["unjudged"]):
        return percent(score)
    return judge_percent(score, samples=x["questions"] * x["samples"], unjudged=x["unjudged"])


def judge_percent(score: float | None, *, samples: float, unjudged: float) -> str:
    """The judge's score, and of how many samples it is: those with a verdict."""
    return f"{percent(score)} ({samples - unjudged:.0f} of {samples:.0f})"


def _rates(x: Summary) -> str:
    k = x["samples"]
    return DASH if k == 1 else f"{percent(x[f'avg@{k}'])}, {percent(x[f'pass@{k}'])} (k={k})"


def percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """A share in percent with one digit, and its interval if there is one."""
    if value is None:
        return DASH
    bounds = "" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    return f"{100 * value:.1f}{bounds}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
