"""tpu_pod where something goes wrong: no answer, workers that die, results on both sides."""

from __future__ import annotations

import pytest

from tests.launch.slices import GCLOUD, end, pod

PROGRAM = '"-m rapo_jax.main "*)'
# Where $CLOUD/murder is, worker 1 is killed once its run is noted, and with $LOST without a note.
MURDER = r"""
if [ -e "$CLOUD/murder" ] && [ "$WORKER" = 1 ]; then
  until [ -s .run ]; do sleep .05; done
  if [ -n "$LOST" ]; then rm .run; fi
  kill -KILL "$PPID"
  exit
fi
"""
NO_SSH = 'if [ "$4" = ssh ]; then exit 1; fi\n'
# No answer to every second question for states; the run ends after 24 questions.
SLOW = """
if [[ "$*" == *" state "* ]]; then
  echo >>"$CLOUD/asked"
  asked=$(wc -l <"$CLOUD/asked")
  if [ "$asked" = 24 ]; then
    for k in 0 1; do echo 0 >"$CLOUD/new" && mv "$CLOUD/new" "$CLOUD/end-$k"; done
  fi
  if [ "$((asked % 2))" = 1 ]; then exit 1; fi
fi
"""


def steps_of(cloud):
    return (cloud.repository / "runs" / "x" / "steps-0").read_text().splitlines()


def actions(cloud):
    return [call.split()[4] for call in cloud.calls() if call.startswith("gcloud")]


def test_results_on_a_slice_are_not_replaced_by_those_fetched_before(cloud):
    end(cloud, 0, 0)
    end(cloud, 1, 0)
    for runs in (1, 2):
        done = cloud.run(*pod())
        assert done.returncode == 0, done.stderr
        assert len(steps_of(cloud)) == runs
    copied = [call for call in cloud.calls() if " scp --recurse " in call]
    assert len(copied) == 2 and all("scp --recurse rapo:" in call for call in copied)


def test_results_fetched_before_stay_where_the_next_fetch_fails(cloud):
    end(cloud, 0, 0)
    end(cloud, 1, 0)
    assert cloud.run(*pod()).returncode == 0
    done = cloud.run(*pod("--delete"), NO_WAY_BACK="yes")
    assert done.returncode == 1 and "nothing is deleted" in done.stderr
    assert len(steps_of(cloud)) == 1


@pytest.mark.parametrize("lost", ["", "yes"])
def test_a_run_that_was_killed_has_failed_even_where_one_before_succeeded(cloud, lost):
    cloud.add("python3", cloud.python.replace(PROGRAM, PROGRAM + MURDER))
    end(cloud, 0, 0)
    end(cloud, 1, 0)
    assert cloud.run(*pod()).returncode == 0
    (cloud.cloud / "murder").touch()
    done = cloud.run(*pod(), LOST=lost)
    state = "idle" if lost else "ended 1 without an exit status"
    assert done.returncode == 1 and f"worker 1: {state}" in done.stdout, done.stderr


def test_of_more_than_ten_workers_each_is_heard(cloud):
    more = 'if [[ "$*" == *" state "* ]]; then echo "worker 10: ended 4 | bad"; fi\n'
    cloud.add("gcloud", more + GCLOUD)
    end(cloud, 0, 0)
    end(cloud, 1, 0)
    assert cloud.run(*pod()).returncode == 4


def test_a_slice_that_answers_now_and_then_is_waited_for(cloud):
    cloud.add("gcloud", SLOW + GCLOUD)
    done = cloud.run(*pod())
    assert done.returncode == 0, done.stderr
    assert len(steps_of(cloud)) == 1


def test_a_slice_that_answers_no_more_is_an_error_and_stays(cloud):
    silent = 'if [[ "$*" == *" state "* ]]; then exit 1; fi\n'
    cloud.add("gcloud", silent + GCLOUD)
    done = cloud.run(*pod("--delete"))
    assert done.returncode == 1
    assert "does not respond; its state: READY. Nothing was deleted" in done.stderr
    assert "delete" not in actions(cloud)


def test_a_new_slice_that_never_answers_gets_no_run(cloud):
    cloud.add("gcloud", NO_SSH + GCLOUD)
    done = cloud.run(*pod("--delete"))
    assert done.returncode == 1 and "try 10 of 10" in done.stderr
    assert actions(cloud) == ["list", "create", *["ssh"] * 10]


def test_on_a_slice_that_does_not_answer_nothing_is_changed(cloud):
    (cloud.cloud / "homes").mkdir()
    cloud.add("gcloud", NO_SSH + GCLOUD)
    done = cloud.run(*pod("--delete"))
    assert done.returncode == 1 and "nothing was changed" in done.stderr
    assert actions(cloud) == ["list", "ssh"]
