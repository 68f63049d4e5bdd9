"""A database with as many comparisons as asked for: some go through the store, the rest are copies of theirs by SQL."""

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import Connection, Table, func, select, update

from service.contract import ArmEnd, ArmRecord, Finding, Gate, Mode, Verdict
from service.store import (
    ArmResult,
    Artifact,
    AttemptRepository,
    AttemptResult,
    Base,
    ComparisonRepository,
    ComparisonRow,
    Database,
    LogRepository,
    now,
)
from tests.service.documents import start, step, tiny

ORIGINALS = 100
# What a hundred comparisons come to, and the modes they are of: few of what is looked for, as in life.
VERDICTS = [Verdict.PASSED] * 90 + [Verdict.FAILED] * 6 + [Verdict.ERROR] * 2 + [Verdict.CANCELLED, Verdict.UNSUPPORTED]
MODES = [(Mode.FLASH, Mode.FLASH_FSDP)] * 50 + [(Mode.GHOST, Mode.GHOST_FSDP)] * 30
MODES += [(Mode.GHOST, Mode.FLASH)] * 18 + [(Mode.ORACLE, Mode.FLASH), (Mode.NONE, Mode.NONE)]
METRICS, ORACLE_METRICS, STEPS = 12, 14, 4
FILLED = (
    f"{ORIGINALS} definitions; for 100 comparisons 103 attempts, 250 arms with series of {STEPS} steps, 1,824 gates, "
    "18 findings, 384 artifacts and 206 pieces of log; 90 passed"
)
COPIED_AT_ONCE = 250
# Each table with the column that names its owner, owners first.
TABLES = {"comparisons": None, "attempts": "comparison_id"} | dict.fromkeys(
    ("arms", "gates", "findings", "artifacts", "log_chunks"), "attempt_id"
)
UNIQUE = {"public_id": "cmp_", "token": ""}


def fill(database: Database, comparisons: int, say: Callable[[str], None], *, definition: str | None = None) -> None:
    """Fills an empty, migrated database; `comparisons` is a multiple of ORIGINALS. `definition`: that of all."""
    rng = random.Random(1)
    verdicts, modes = rng.sample(VERDICTS, ORIGINALS), rng.sample(MODES, ORIGINALS)
    for number in range(ORIGINALS):
        _original(database, number, verdicts[number], *modes[number])
    if definition is not None:
        with database.write() as session:
            session.execute(update(ComparisonRow).values(definition=definition))
    with database.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        _copy(connection, comparisons // ORIGINALS - 1, say)
    database.close()


def _original(database: Database, number: int, verdict: Verdict, reference: Mode, candidate: Mode) -> None:
    document = tiny(f"suite {number % 10}/comparison {number}", reference, candidate, seed=number)
    with database.write() as session:
        attempts, moment = AttemptRepository(session), now(session)
        row = ComparisonRepository(session).add(document, moment, ring_after=moment)
        lost = number % 33 == 32
        for last in (False, True)[not lost :]:
            claim = attempts.claim(row.public_id, "worker:1", moment, timedelta(seconds=30))
            assert claim is not None
            LogRepository(session).append(claim.attempt_id, [("reference", "x" * 300)] * 2, 1_000_000)
            if last:
                attempts.record(claim.token, _result(number, verdict, claim.attempt_id), moment)
            else:
                held = next(lease for lease in attempts.held() if lease.token == claim.token)
                attempts.reclaim(held, moment, 3)


def _result(number: int, verdict: Verdict, attempt_id: int) -> AttemptResult:
    record = ArmRecord(
        start=start(STEPS),
        steps=[step(one) for one in range(1, STEPS + 1)],
        end=ArmEnd(num_steps=STEPS, epsilon=1.0, delta=1e-5, duration=10.0),
    )
    with_oracle = number % 2
    roles = ("reference", "candidate", "oracle")[: 2 + with_oracle]
    judged = verdict in (Verdict.PASSED, Verdict.FAILED)
    count = (METRICS + ORACLE_METRICS * with_oracle) if judged else 0
    gates = [Gate(metric=f"metric {one}", passed=True, observed=1.5e-7, limit=1e-4) for one in range(count)]
    if verdict is not Verdict.FAILED:
        return _without_findings(verdict, gates, roles, record, attempt_id)
    gates[0] = gates[0].model_copy(update={"passed": False, "observed": 1.0, "first_step": 1, "detail": "it differs"})
    findings = [Finding(metric="metric 0", step=1, message="the loss differs from step 1 on")] * 3
    return replace(_without_findings(verdict, gates, roles, record, attempt_id), findings=findings)


def _without_findings(
    verdict: Verdict, gates: list[Gate], roles: tuple[str, ...], record: ArmRecord, attempt_id: int
) -> AttemptResult:
    names = ["loss", "grad_norms", "parameters", "histogram"] if gates else []
    return AttemptResult(
        verdict=verdict,
        error="it ended early" if verdict is Verdict.ERROR else None,
        gates=gates,
        arms={role: ArmResult(record) for role in roles},
        artifacts=[Artifact(f"{name}.png", "image/png", f"attempts/{attempt_id}/{name}.png", 20_000) for name in names],
    )


def _copy(connection: Connection, copies: int, say: Callable[[str], None]) -> None:
    sqlite = connection.dialect.name == "sqlite"
    if not sqlite:
        # Copies are whole: nothing has to look up for each row whether its owner is there.
        connection.exec_driver_sql("SET session_replication_role = replica")
        connection.exec_driver_sql("SET synchronous_commit = off")
    tables = [Base.metadata.tables[name] for name in TABLES]
    counts = {table.name: connection.scalar(select(func.max(table.c.id))) or 0 for table in tables}
    for first in range(1, copies + 1, COPIED_AT_ONCE):
        last = min(first + COPIED_AT_ONCE - 1, copies)
        for table in tables:
            connection.exec_driver_sql(_copy_statement(table, counts, first, last, sqlite))
        say(f"filling: {(last + 1) * counts['comparisons']:,} of {(copies + 1) * counts['comparisons']:,} comparisons")
    if not sqlite:
        for table in tables:
            connection.exec_driver_sql(
                f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), (SELECT max(id) FROM {table.name}))"
            )
    connection.commit()
    connection.exec_driver_sql("ANALYZE" if sqlite else "VACUUM ANALYZE")


def _copy_statement(table: Table, counts: dict[str, int], first: int, last: int, sqlite: bool) -> str:
    """INSERT … SELECT of copies `first` to `last` of the original rows, whose ids are 1 to their count."""
    owner = TABLES[table.name]
    text = "lower(hex(randomblob(10)))" if sqlite else "substr(md5(random()::text), 1, 20)"
    chosen = []
    for column in table.columns:
        if column.name == "id":
            chosen.append(f"o.id + k * {counts[table.name]}")
        elif column.name == owner:
            chosen.append(f"o.{owner} + k * {counts['comparisons' if owner == 'comparison_id' else 'attempts']}")
        elif column.name in UNIQUE:
            chosen.append(f"'{UNIQUE[column.name]}' || {text}")
        else:
            chosen.append(f'o."{column.name}"')
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    series = f"WITH RECURSIVE series(k) AS (SELECT {first} UNION ALL SELECT k + 1 FROM series WHERE k < {last})"
    rows = f"{table.name} AS o CROSS JOIN series WHERE o.id <= {counts[table.name]} ORDER BY k, o.id"
    return f"{series} INSERT INTO {table.name} ({names}) SELECT {', '.join(chosen)} FROM {rows}"
