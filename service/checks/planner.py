"""From what was heard to checks: the rules decide, git says what changed, one transaction queues."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from sqlalchemy.orm import Session

from service.checks.events import Approved, Event, Proposed, Pushed, event_of
from service.checks.lifecycle import enqueue_comment, notify_workers, queue_checks
from service.checks.rules_file import RulesError, read_rules, read_suite
from service.contract import Pulls, Rule, Rules, Suite, Target
from service.git import Changes, GitError
from service.queue import Notifier
from service.settings import Settings
from service.store import CheckRow, Database, DeliveryRepository, DeliveryRow, DeliveryState, now, one_line
from service.suites import SuiteError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckPlan:
    """What a delivery leads to: checks of `run` at once, of `wait` when somebody approves, and why in words."""

    outcome: str
    run: tuple[tuple[Suite, bool], ...] = ()
    wait: tuple[tuple[Suite, bool], ...] = ()


class CheckPlanner:
    """Handles deliveries in the order in which they came. Several at once are harmless: a row is handled once."""

    def __init__(self, database: Database, notifier: Notifier, settings: Settings) -> None:
        self._database, self._notifier, self._settings = database, notifier, settings
        self._changes = Changes(settings.opacus_remote, settings.cache_folder)
        self._complained = ""

    def handle_all(self) -> int:
        """Handles what was received. How many. While the rules cannot be read, deliveries wait."""
        with self._database.read() as session:
            received = DeliveryRepository(session).received()
        if not received:
            return 0
        try:
            rules = self._rules()
            handled = sum(self._handle(rules, row) for row in received)
        except (RulesError, SuiteError) as error:
            if str(error) != self._complained:
                log.error("deliveries wait: %s", error)
            self._complained = str(error)
            return 0
        self._complained = ""
        return handled

    def _rules(self) -> Rules:
        rules = read_rules(self._settings)
        if rules is None:
            raise RulesError("CLIPWATCH_RULES is not set here")
        return rules

    def _handle(self, rules: Rules, row: DeliveryRow) -> bool:
        try:
            return self._plan_and_queue(rules, row)
        except ValidationError as error:
            # Remembered by another version. Left there, it would hold up all that came after it.
            return self._drop(row, f"this version cannot read it: {one_line(error)}")

    def _plan_and_queue(self, rules: Rules, row: DeliveryRow) -> bool:
        if rules.repository.lower() != row.repository.lower():
            return self._drop(row, f"no rules for {row.repository}")
        heard = event_of(row.document)
        if isinstance(heard, Approved):
            return self._approve(rules, row, heard)
        plan = self._plan(rules, row, heard)
        with self._database.write() as session:
            deliveries, moment = DeliveryRepository(session), now(session)
            state = DeliveryState.WAITING if plan.wait else DeliveryState.DONE
            if not deliveries.move(row.id, DeliveryState.RECEIVED, state, plan.outcome, moment):
                return False
            if row.pull is not None:
                deliveries.close_waiting(row.repository, row.pull, row.id, f"superseded by {row.sha}", moment)
                if plan.run or plan.wait:
                    enqueue_comment(session, self._settings, row.repository, row.pull, moment)
            checks = self._queue(session, row, heard.title, plan.run)
        return self._handled(row, plan.outcome, checks)

    def _approve(self, rules: Rules, row: DeliveryRow, said: Approved) -> bool:
        assert row.pull is not None
        if said.label is not None:
            if said.label != rules.label:
                return self._drop(row, f"label {said.label!r} approves nothing")
        elif not rules.may_approve(said.login, said.association):
            return self._drop(row, f"{said.login} ({said.association}) may not have code run")
        with self._database.read() as session:
            waiting = DeliveryRepository(session).head(row.repository, row.pull)
        if waiting is None or waiting.sha != said.sha or waiting.state != DeliveryState.WAITING:
            return self._drop(row, f"{said.sha} is not a head of pull request {row.pull} that waits")
        proposed = event_of(waiting.document)
        assert isinstance(proposed, Proposed)
        plan = self._plan(rules, waiting, proposed)
        outcome = f"approved by {said.login}"
        with self._database.write() as session:
            deliveries, moment = DeliveryRepository(session), now(session)
            if not deliveries.move(row.id, DeliveryState.RECEIVED, DeliveryState.DONE, outcome, moment):
                return False
            checks: list[CheckRow] = []
            if deliveries.move(waiting.id, DeliveryState.WAITING, DeliveryState.DONE, outcome, moment):
                checks = self._queue(session, waiting, proposed.title, plan.wait)
        return self._handled(row, outcome, checks)

    def _drop(self, row: DeliveryRow, outcome: str) -> bool:
        with self._database.write() as session:
            moved = DeliveryRepository(session).move(
                row.id, DeliveryState.RECEIVED, DeliveryState.DONE, outcome, now(session)
            )
        return moved and self._handled(row, outcome, [])

    def _handled(self, row: DeliveryRow, outcome: str, checks: list[CheckRow]) -> bool:
        log.info("%s %s: %s; %d checks", row.kind, row.guid, outcome, len(checks))
        notify_workers(self._notifier, checks)
        return True

    def _queue(
        self, session: Session, row: DeliveryRow, title: str, suites: Sequence[tuple[Suite, bool]]
    ) -> list[CheckRow]:
        target = Target.model_validate(
            {"repository": row.repository, "branch": row.branch, "pull": row.pull, "sha": row.sha, "title": title}
        )
        return [
            check
            for suite, supersede in suites
            for check in queue_checks(session, self._settings, target, [suite], supersede=supersede)
        ]

    def _plan(self, rules: Rules, row: DeliveryRow, heard: Pushed | Proposed) -> CheckPlan:
        assert row.branch is not None
        fitting = [rule for rule in rules.rules if rule.has_branch(row.branch) and _has_kind(rule, heard)]
        if not fitting:
            return CheckPlan(f"no rule for a {heard.kind} to {row.branch}")
        changed = self._changed(row, heard) if any(rule.paths for rule in fitting) else None
        fitting = [rule for rule in fitting if rule.has_path(changed)]
        if not fitting:
            return CheckPlan("no path that matters has changed")
        run = [rule for rule in fitting if _runs_unasked(rule, heard)]
        wait = [rule for rule in fitting if rule not in run]
        return CheckPlan("waits for a maintainer" if wait else "checked", self._suites(run), self._suites(wait))

    def _changed(self, row: DeliveryRow, heard: Pushed | Proposed) -> tuple[str, ...] | None:
        base = heard.before if isinstance(heard, Pushed) else heard.base
        if base is None or row.sha is None:
            return None
        try:
            return self._changes.between(base, row.sha, since_fork=isinstance(heard, Proposed))
        except GitError as error:
            # A check too many is better than one that is missing.
            log.warning("what changed from %s to %s is unknown, so all of it did: %s", base, row.sha, error)
            return None

    def _suites(self, rules: Sequence[Rule]) -> tuple[tuple[Suite, bool], ...]:
        """Each suite once, as the first rule that names it has it."""
        named: dict[str, bool] = {}
        for rule in rules:
            for name in rule.suites:
                named.setdefault(name, rule.supersede)
        return tuple((read_suite(self._settings, name), supersede) for name, supersede in named.items())


def _has_kind(rule: Rule, heard: Event) -> bool:
    return rule.pushes if isinstance(heard, Pushed) else rule.pull_requests is not Pulls.NONE


def _runs_unasked(rule: Rule, heard: Pushed | Proposed) -> bool:
    if isinstance(heard, Pushed):
        return True
    return rule.pull_requests is Pulls.SAME_REPOSITORY and not heard.fork
