"""The trainings under way: started as the journal orders, at most one a model, and their results recorded once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tidemill.base.errors import TrainingError
from tidemill.engine.monitor.canary import let_in
from tidemill.engine.predict.state import ModelState, State, Training
from tidemill.engine.train.train import Order
from tidemill.ports.executor import Executor, Job, Progress
from tidemill.ports.journal import Draft, Journal
from tidemill.ports.lake import Fence
from tidemill.spec.system import Canary, System


class Trainings:
    """Has ``executor`` carry the trainings out. What each made is kept in ``journal``, and is not computed again."""

    def __init__(self, system: System, journal: Journal, executor: Executor, fence: Fence) -> None:
        self._system, self._journal, self._executor, self._fence = system, journal, executor, fence
        self._jobs: dict[str, Job] = {}

    def __bool__(self) -> bool:
        """Tell whether a training is under way."""
        return bool(self._jobs)

    def launch(self, training: Training) -> None:
        """Start a training, unless its result is known."""
        if self._journal.step(training.id) is not None:
            return
        order = Order(
            training.model,
            training.id,
            training.case,
            training.as_of,
            self._system.policy.window,
            training.next_seq,
            training.rival,
        )
        self._jobs[training.model] = self._executor.submit("train", asdict(order))

    def result(self, training: Training) -> dict[str, Any]:
        """Return what a training made, waiting for it if it is not done. Raises TrainingError when it failed."""
        known = self._journal.step(training.id)
        if known is None:
            if training.model not in self._jobs:
                self.launch(training)
            known = self._jobs[training.model].result()
            self._journal.record_step(training.id, known, self._fence)
        self._jobs.pop(training.model, None)
        return known

    def finish(self, state: State, tick: int) -> list[Draft]:
        """Draft the outcome of every training that takes effect by now, waiting for it if it is not done."""
        drafts = []
        for model in self._system.models:
            training = state.model(model.name).training
            if training is None or tick < training.ready:
                continue
            try:
                result = self.result(training)
            except TrainingError as error:
                reason = str(error).splitlines()[0]
                body = {"model": model.name, "training": training.id, "reason": reason}
                drafts.append(Draft(tick, "fail", body, {"error": str(error)}))
            else:
                drafts += _outcome(state.model(model.name), training, result, self._system.endpoint.canary, tick)
        return drafts

    def progress(self) -> dict[str, Progress]:
        """Return how far the trainings under way are, by model."""
        return {name: job.progress() for name, job in tuple(self._jobs.items())}

    def stop(self) -> None:
        """Stop what is under way."""
        for job in self._jobs.values():
            job.cancel()
        self._jobs.clear()


def _outcome(
    state: ModelState, training: Training, result: Mapping[str, Any], canary: Canary | None, tick: int
) -> list[Draft]:
    """Return the entries of a finished training: the judgement and, when it passed, a version and how it is let in."""
    judged = result["judged"]
    head = {"model": training.model, "training": training.id}
    drafts = [Draft(tick, "judge", {**head, "judged": judged})]
    if judged["verdict"]["outcome"] != "pass":
        return drafts
    number = len(state.versions) + 1
    made = {**head, "version": number, "recipe": training.recipe, "as_of": training.as_of}
    reasons = judged["verdict"]["reasons"]
    return [*drafts, Draft(tick, "version", made), *let_in(training.model, state, number, canary, tick, reasons)]
