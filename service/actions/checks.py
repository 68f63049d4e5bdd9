"""Request and cancel a check."""

from service.actions.errors import AlreadyFinished, InvalidField, RulesUnavailable, found
from service.checks.lifecycle import notify_workers, queue_checks
from service.checks.rules_file import RulesError, read_rules, read_suite
from service.contract import Target
from service.queue.notifier import Notifier
from service.settings import Settings
from service.store import CheckRepository, CheckRow, Database, Status, now
from service.suites import SuiteError


def request_check(database: Database, notifier: Notifier, settings: Settings, target: Target, suite: str) -> CheckRow:
    """Queues a check of a suite on a commit and notifies the workers. No other check is cancelled for it.

    Raises:
        InvalidField: the suite is unknown or cannot be read, or the rules name another repository.
        RulesUnavailable: the rules file cannot be read.
    """
    try:
        rules = read_rules(settings)
        requested = read_suite(settings, suite)
    except SuiteError as error:
        raise InvalidField("suite", str(error)) from None
    except RulesError as error:
        raise RulesUnavailable(str(error)) from None
    if rules is not None and rules.repository != target.repository:
        # The verdict is posted to that repository with this service's credential.
        raise InvalidField("target.repository", f"only {rules.repository} is configured here")
    with database.write() as session:
        rows = queue_checks(session, settings, target, [requested])
    notify_workers(notifier, rows)
    return rows[0]


def cancel_check(database: Database, public_id: str) -> None:
    """Cancels every comparison of a check that has not ended. The check gets its verdict when all have ended.

    Raises:
        NotFound: there is no such check.
        AlreadyFinished: it has a verdict.
    """
    with database.write() as session:
        checks = CheckRepository(session)
        row = found(checks.get(public_id), "check", public_id)
        if row.status == Status.FINISHED:
            raise AlreadyFinished("check", row.verdict)
        checks.cancel(row, "cancelled by a user", now(session))
