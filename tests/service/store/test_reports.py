"""The outbox and the inbox, on both databases: each report is claimed once and none is forgotten."""

from datetime import timedelta

from service.store import (
    Delivery,
    DeliveryRepository,
    DeliveryState,
    ReportKind,
    ReportRepository,
    now,
)

LEASE = timedelta(minutes=1)


def want(database, key="commit:c", kind=ReportKind.COMMIT) -> None:
    with database.write() as session:
        ReportRepository(session).enqueue(key, kind, now(session))


def claim(database, ahead=timedelta(0)):
    with database.write() as session:
        return ReportRepository(session).claim(now(session) + ahead, LEASE)


def test_a_claimed_report_is_nobody_elses_until_its_lease_is_over(database) -> None:
    want(database)
    assert len(claim(database)) == 1
    assert claim(database) == []
    assert len(claim(database, 2 * LEASE)) == 1


def test_what_is_new_while_it_is_sent_is_sent_too(database) -> None:
    want(database)
    (report,) = claim(database)
    want(database)
    assert claim(database) == []
    with database.write() as session:
        ReportRepository(session).sent(report, "17", "digest", now(session))
    (newer,) = claim(database)
    assert (newer.external_id, newer.sent, newer.version) == ("17", "digest", 2)
    with database.write() as session:
        ReportRepository(session).sent(newer, "17", "digest", now(session))
    assert claim(database, 2 * LEASE) == []


def test_what_failed_waits_and_something_new_does_not_hurry_it(database) -> None:
    want(database)
    (report,) = claim(database)
    with database.write() as session:
        ReportRepository(session).delay(report, now(session) + LEASE, "down")
    want(database)
    assert claim(database) == []
    (again,) = claim(database, 2 * LEASE)
    assert again.attempts == 1


def test_a_pause_is_for_the_kinds_it_names(database) -> None:
    want(database)
    want(database, "slack:c", ReportKind.SLACK)
    with database.write() as session:
        ReportRepository(session).postpone((ReportKind.COMMIT, ReportKind.COMMENT), now(session) + LEASE)
    assert [report.kind for report in claim(database)] == [ReportKind.SLACK]
    assert [report.kind for report in claim(database, 2 * LEASE)] == [ReportKind.COMMIT, ReportKind.SLACK]


def test_a_delivery_is_remembered_once_and_moved_once(database) -> None:
    delivery = Delivery("guid", "webhook", "push", "a/b", {}, branch="main", sha="a" * 40)
    with database.write() as session:
        deliveries = DeliveryRepository(session)
        assert [deliveries.remember(delivery, now(session)) for _ in range(2)] == [True, False]
        (row,) = deliveries.received()
        moves = [
            deliveries.move(row.id, DeliveryState.RECEIVED, DeliveryState.DONE, "checked", now(session))
            for _ in range(2)
        ]
    assert moves == [True, False]
    with database.read() as session:
        assert DeliveryRepository(session).received() == []
        last = DeliveryRepository(session).last_seen("webhook", "a/b", "main")
        assert (last.outcome, last.state) == ("checked", "done")
