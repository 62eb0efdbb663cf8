"""`python -m rapo_jax.report WORKDIR... --output FILE`: the report of one or several runs.

FILE.svg is a picture of their held-out accuracy against CPU time instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rapo_jax.report.compare import BASELINE
from rapo_jax.report.figure import write_figure
from rapo_jax.report.page import write_report
from rapo_jax.report.runs import load_run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rapo_jax.report", description=__doc__)
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR")
    parser.add_argument("--output", type=Path, default=Path("report.html"))
    parser.add_argument("--baseline", default=BASELINE, help="the variant compared with")
    flags = parser.parse_args()
    for workdir in flags.workdirs:
        run = load_run(workdir)
        if not run.holds_anything():
            parser.error(f"{workdir}: no workdir of a run ({'; '.join(run.notes)})")
    if not flags.output.parent.is_dir():
        parser.error(f"--output={flags.output}: there is no folder {flags.output.parent}")
    if flags.output.suffix not in (".html", ".svg"):
        parser.error(f"--output={flags.output}: a report is .html, a picture .svg")
    try:
        if flags.output.suffix == ".html":
            write_report(flags.workdirs, flags.output, baseline=flags.baseline)
        elif not write_figure(flags.workdirs, flags.output):
            parser.error("no run has held-out accuracies of its training (evaluate.every)")
    except OSError as error:  # of the disk: the values are valid
        parser.exit(1, f"{parser.prog}: error: --output={flags.output}: {error}\n")
    print(flags.output)


if __name__ == "__main__":
    main()
