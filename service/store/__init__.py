"""The store: SQLAlchemy models, the unit of work, and one repository per aggregate. All SQL lives here.

The database is the queue: a comparison is claimed by compare-and-set, held by a lease, and written to with a
fencing token. No repository commits: the caller's `Database.write()` does.
"""

from service.store.attempts import ArmProgress, AttemptRepository, Claim, HeldLease, Progress
from service.store.clock import now
from service.store.comparisons import ComparisonFilter, ComparisonRepository
from service.store.database import Database
from service.store.logs import LogRepository
from service.store.migrate import downgrade, is_current, migrate
from service.store.models import ArmRow, AttemptRow, AttemptState, Base, ComparisonRow, GateRow, LogChunkRow, Status
from service.store.results import ArmResult, Artifact, AttemptResult, one_line

__all__ = [
    "ArmProgress",
    "ArmResult",
    "ArmRow",
    "Artifact",
    "AttemptRepository",
    "AttemptResult",
    "AttemptRow",
    "AttemptState",
    "Base",
    "Claim",
    "ComparisonFilter",
    "ComparisonRepository",
    "ComparisonRow",
    "Database",
    "GateRow",
    "HeldLease",
    "LogChunkRow",
    "LogRepository",
    "Progress",
    "Status",
    "downgrade",
    "is_current",
    "migrate",
    "now",
    "one_line",
]
