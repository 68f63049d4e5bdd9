"""The channels: how a report of each kind is composed from the database and sent.

A new kind of report needs a member of `ReportKind`, a function here and its entry in `CHANNELS`; for a subscriber also
a setting, in `Settings.subscriptions`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from service.github.client import GitHub
from service.reports import texts
from service.reports.webhooks import notice, post_slack, post_webhook
from service.settings import Settings
from service.store import CheckRepository, CheckRow, Database, DeliveryRepository, DeliveryState, Report, ReportKind


@dataclass(frozen=True)
class Message:
    """A composed report. `send` delivers it and returns the id that the other side gave it.

    A message whose `content` is the same as at the last delivery is not sent again. Without content it always is.
    """

    content: object | None
    send: Callable[[], str | None]


@dataclass(frozen=True)
class ReportContext:
    """What a channel composes a report from."""

    database: Database
    settings: Settings
    github: GitHub

    def check(self, report: Report) -> CheckRow:
        """The check that a report is about."""
        assert report.check_id is not None
        with self.database.read() as session:
            row = CheckRepository(session).by_id(report.check_id)
        assert row is not None
        return row


def commit_message(context: ReportContext, report: Report) -> Message:
    """A check run, or with a token that may make none, a commit status."""
    check, github = context.check(report), context.github
    if not github.is_app:
        status = texts.status(check, context.settings.public_url)
        return Message(status, lambda: github.put_status(check.repository, check.sha, status))
    values = texts.check_run(check, context.settings.public_url)
    return Message(values, lambda: github.put_check_run(check.repository, check.sha, report.external_id, values))


def comment_message(context: ReportContext, report: Report) -> Message:
    """The sticky comment of a pull request, about all checks of its newest commit."""
    repository, pull = report.document["repository"], report.document["pull"]
    with context.database.read() as session:
        head = DeliveryRepository(session).head(repository, pull)
        checks = CheckRepository(session)
        sha = head.sha if head is not None else checks.head_of_pull(repository, pull)
        assert sha is not None
        found = checks.of_pull(repository, pull, sha)
    waits = head is not None and head.state == DeliveryState.WAITING
    body = texts.comment(repository, pull, sha, found, waits, context.settings.public_url)
    marker = texts.marker(repository, pull)
    return Message(body, lambda: context.github.put_comment(repository, pull, report.external_id, marker, body))


def webhook_message(context: ReportContext, report: Report) -> Message:
    """The notice for the subscriber of `notify_url`."""
    check = context.check(report)
    document = notice(check, context.settings.public_url)
    return Message(None, lambda: post_webhook(context.settings, document, f"{check.public_id}-{report.id}"))


def slack_message(context: ReportContext, report: Report) -> Message:
    """The notice as a message for `slack_url`."""
    document = notice(context.check(report), context.settings.public_url)
    return Message(None, lambda: post_slack(context.settings, document))


CHANNELS: dict[ReportKind, Callable[[ReportContext, Report], Message]] = {
    ReportKind.COMMIT: commit_message,
    ReportKind.COMMENT: comment_message,
    ReportKind.WEBHOOK: webhook_message,
    ReportKind.SLACK: slack_message,
}
TO_GITHUB = (ReportKind.COMMIT, ReportKind.COMMENT)
