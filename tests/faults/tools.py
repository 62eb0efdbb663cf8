"""User tools that fail at a rate of 0.3, for `tools.user_tools`."""

from __future__ import annotations

from tests.faults.injected import Faults, faulty

FAULTS = Faults("error", "hang", "flood", "late")
calculate = faulty(lambda text: str(len(text)), FAULTS)
look_up = faulty(lambda text: f"found {text}", FAULTS)
