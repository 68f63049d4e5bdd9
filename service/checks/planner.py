"""From a stored delivery to checks: the rules decide, git says which files changed, one transaction queues."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from pydantic import ValidationError
from sqlalchemy.orm import Session

from service.checks.approvals import CodeHost, CodeHostError, reason_against
from service.checks.events import Approved, Event, Proposed, Pushed, event_of
from service.checks.lifecycle import enqueue_comment, enqueue_reports, notify_workers, queue_checks
from service.checks.rules_file import RulesError, read_rules, read_suite
from service.contract import Pulls, Rule, Rules, Suite, Target
from service.git import Changes, GitError
from service.queue import Notifier
from service.settings import Settings
from service.store import (
    CheckRepository,
    CheckRow,
    Database,
    DeliveryRepository,
    DeliveryRow,
    DeliveryState,
    now,
    one_line,
)
from service.suites import SuiteError

log = logging.getLogger(__name__)

# For so long an approval waits for a code host that does not answer.
APPROVAL_LIFETIME = timedelta(days=1)


@dataclass(frozen=True)
class CheckPlan:
    """What a delivery leads to: suites that `run` at once, suites that `wait` for an approval, and why in words."""

    outcome: str
    run: tuple[tuple[Suite, bool], ...] = ()
    wait: tuple[tuple[Suite, bool], ...] = ()


class CheckPlanner:
    """Handles deliveries in the order in which they came. Several at once are harmless: a row is handled once.

    Args:
        host: where permissions are asked; None where no credential is configured, and then nothing is approved.
    """

    def __init__(self, database: Database, notifier: Notifier, settings: Settings, host: CodeHost | None) -> None:
        self._database, self._notifier, self._settings, self._host = database, notifier, settings, host
        self._changes = Changes(settings.opacus_remote, settings.cache_folder)
        self._last_complaint = ""
        # By time.monotonic: until then the code host is not asked again.
        self._pause_until = 0.0

    def handle_all(self) -> int:
        """Handles what was received, and deferred approvals. How many. While the rules cannot be read, all wait."""
        with self._database.read() as session:
            deliveries = DeliveryRepository(session)
            waiting = deliveries.received()
            if self._may_ask():
                waiting += deliveries.deferred()
        if not waiting:
            return 0
        try:
            rules = self._rules()
            handled = sum(self._handle(rules, row) for row in waiting)
        except (RulesError, SuiteError) as error:
            if str(error) != self._last_complaint:
                log.error("deliveries wait: %s", error)
            self._last_complaint = str(error)
            return 0
        self._last_complaint = ""
        return handled

    def _may_ask(self) -> bool:
        return time.monotonic() >= self._pause_until

    def _rules(self) -> Rules:
        rules = read_rules(self._settings)
        if rules is None:
            raise RulesError("CLIPWATCH_RULES is not set here")
        return rules

    def _handle(self, rules: Rules, row: DeliveryRow) -> bool:
        try:
            return self._plan_and_queue(rules, row)
        except ValidationError as error:
            # Stored by another version. If it stayed, it would be tried before all that came after it, again and again.
            return self._drop(row, f"this version cannot read it: {one_line(error)}")

    def _plan_and_queue(self, rules: Rules, row: DeliveryRow) -> bool:
        if rules.repository.lower() != row.repository.lower():
            return self._drop(row, f"no rules for {row.repository}")
        event = event_of(row.document)
        if isinstance(event, Approved):
            return self._approve(rules, row, event)
        plan = self._plan(rules, row, event)
        with self._database.write() as session:
            deliveries, moment = DeliveryRepository(session), now(session)
            state = DeliveryState.WAITING if plan.wait else DeliveryState.DONE
            if not deliveries.move(row.id, DeliveryState.RECEIVED, state, plan.outcome, moment):
                return False
            if row.pull is not None:
                self._end_older_heads(session, row, event)
                if plan.run or plan.wait:
                    enqueue_comment(session, self._settings, row.repository, row.pull, moment)
            checks = self._queue(session, row, event.title, plan.run)
        return self._handled(row, plan.outcome, checks)

    def _end_older_heads(self, session: Session, row: DeliveryRow, event: Pushed | Proposed) -> None:
        """A new head ends the waiting of older ones. What was approved of a fork's older head is not begun any more."""
        assert row.pull is not None
        assert row.sha is not None
        moment = now(session)
        superseded = f"superseded by {row.sha}"
        DeliveryRepository(session).close_waiting(row.repository, row.pull, row.id, superseded, moment)
        if isinstance(event, Proposed) and event.fork:
            for check in CheckRepository(session).supersede_heads(row.repository, row.pull, row.sha, moment):
                enqueue_reports(session, self._settings, check, moment)

    def _approve(self, rules: Rules, row: DeliveryRow, approved: Approved) -> bool:
        assert row.pull is not None
        if approved.label is not None and approved.label != rules.label:
            return self._drop(row, f"label {approved.label!r} approves nothing")
        with self._database.read() as session:
            waiting = DeliveryRepository(session).head(row.repository, row.pull)
        if waiting is None or waiting.sha != approved.sha or waiting.state != DeliveryState.WAITING:
            return self._drop(row, f"{approved.sha} is not a head of pull request {row.pull} that waits")
        if self._host is None:
            return self._drop(row, f"no credential to ask for the permission of {approved.login}: docs/github.md")
        if not self._may_ask():
            return self._defer(row, "the code host is not asked at the moment")
        try:
            reason = reason_against(self._host, row.repository, row.pull, approved)
        except CodeHostError as error:
            if error.refused:
                return self._drop(row, f"not approved, for the permission of {approved.login} is not known: {error}")
            self._pause_until = time.monotonic() + max(error.wait or 0.0, self._settings.sweep_seconds)
            return self._defer(row, str(error))
        if reason is not None:
            return self._drop(row, reason)
        return self._run_approved(rules, row, waiting, approved)

    def _run_approved(self, rules: Rules, row: DeliveryRow, waiting: DeliveryRow, approved: Approved) -> bool:
        proposed = event_of(waiting.document)
        assert isinstance(proposed, Proposed)
        plan = self._plan(rules, waiting, proposed)
        outcome = f"approved by {approved.login}"
        with self._database.write() as session:
            deliveries, moment = DeliveryRepository(session), now(session)
            if not deliveries.move(row.id, DeliveryState(row.state), DeliveryState.DONE, outcome, moment):
                return False
            checks: list[CheckRow] = []
            if deliveries.move(waiting.id, DeliveryState.WAITING, DeliveryState.DONE, outcome, moment):
                checks = self._queue(session, waiting, proposed.title, plan.wait)
        return self._handled(row, outcome, checks)

    def _defer(self, row: DeliveryRow, why: str) -> bool:
        """Keeps an approval for later. One that waited for too long is dropped: the head has been read long ago."""
        with self._database.write() as session:
            moment = now(session)
            if moment - row.received_at > APPROVAL_LIFETIME:
                state, outcome = DeliveryState.DONE, f"not approved, for the code host could not be asked: {why}"
            else:
                state, outcome = DeliveryState.DEFERRED, f"not approved yet, tried again later: {why}"
            moved = DeliveryRepository(session).move(row.id, DeliveryState(row.state), state, outcome, moment)
        return moved and self._handled(row, outcome, [])

    def _drop(self, row: DeliveryRow, outcome: str) -> bool:
        with self._database.write() as session:
            moved = DeliveryRepository(session).move(
                row.id, DeliveryState(row.state), DeliveryState.DONE, outcome, now(session)
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

    def _plan(self, rules: Rules, row: DeliveryRow, event: Pushed | Proposed) -> CheckPlan:
        assert row.branch is not None
        fitting = [rule for rule in rules.rules if rule.has_branch(row.branch) and _has_kind(rule, event)]
        if not fitting:
            return CheckPlan(f"no rule for a {event.kind} to {row.branch}")
        changed = self._changed(row, event) if any(rule.paths for rule in fitting) else None
        fitting = [rule for rule in fitting if rule.has_path(changed)]
        if not fitting:
            return CheckPlan("no path that matters has changed")
        run = [rule for rule in fitting if _runs_unasked(rule, event)]
        wait = [rule for rule in fitting if rule not in run]
        return CheckPlan("waits for a maintainer" if wait else "checked", self._suites(run), self._suites(wait))

    def _changed(self, row: DeliveryRow, event: Pushed | Proposed) -> tuple[str, ...] | None:
        base = event.before if isinstance(event, Pushed) else event.base
        if base is None or row.sha is None:
            return None
        try:
            return self._changes.between(base, row.sha, since_fork=isinstance(event, Proposed))
        except GitError as error:
            # One check too many is better than one too few.
            log.warning("which files changed from %s to %s is unknown, so every rule applies: %s", base, row.sha, error)
            return None

    def _suites(self, rules: Sequence[Rule]) -> tuple[tuple[Suite, bool], ...]:
        """Each suite once, with whether it supersedes by the first rule that names it."""
        named: dict[str, bool] = {}
        for rule in rules:
            for name in rule.suites:
                named.setdefault(name, rule.supersede)
        return tuple((read_suite(self._settings, name), supersede) for name, supersede in named.items())


def _has_kind(rule: Rule, event: Event) -> bool:
    return rule.pushes if isinstance(event, Pushed) else rule.pull_requests is not Pulls.NONE


def _runs_unasked(rule: Rule, event: Pushed | Proposed) -> bool:
    if isinstance(event, Pushed):
        return True
    return rule.pull_requests is Pulls.SAME_REPOSITORY and not event.fork
