"""The store: SQLAlchemy models, the unit of work, and one repository per aggregate. All SQL is here.

The database is the queue. A worker claims a comparison by compare-and-set, holds it by a lease, and writes its result
with a fencing token. No repository commits: the caller's `Database.write()` does.
"""

from service.store.access import NOTED_EVERY, TokenRepository, WebSessionRepository
from service.store.agents import AgentEnd, AgentRepository, AgentTask, NodeTaskStatus
from service.store.attempts import ArmProgress, AttemptProgress, AttemptRepository, Claim, HeldLease
from service.store.check_models import CheckEntryRow, CheckRow, DeliveryRow, DeliveryState, ReportKind, ReportRow
from service.store.checks import BranchSuite, CheckRepository, branch_suite_of
from service.store.clock import now
from service.store.comparisons import ComparisonFilter, ComparisonRepository
from service.store.database import Database
from service.store.deliveries import Delivery, DeliveryRepository
from service.store.history import Finished, HistoryRepository
from service.store.host_models import AgentRow, AgentState, HostRow, ReservationRow
from service.store.hosts import Host, HostRepository, HostStatus, Node, NoHosts
from service.store.logs import LOG_PAGE, LogRepository
from service.store.migrate import downgrade, is_current, migrate
from service.store.models import (
    ArmRow,
    AttemptRow,
    AttemptState,
    Base,
    ComparisonRow,
    GateRow,
    LogChunkRow,
    Status,
    TokenRow,
    WebSessionRow,
    deciding,
)
from service.store.pruning import PruneRepository
from service.store.reports import Report, ReportRepository
from service.store.results import ArmResult, Artifact, AttemptResult, one_line
from service.store.statistics import Statistics, statistics

__all__ = [
    "LOG_PAGE",
    "NOTED_EVERY",
    "AgentEnd",
    "AgentRepository",
    "AgentRow",
    "AgentState",
    "AgentTask",
    "ArmProgress",
    "ArmResult",
    "ArmRow",
    "Artifact",
    "AttemptProgress",
    "AttemptRepository",
    "AttemptResult",
    "AttemptRow",
    "AttemptState",
    "Base",
    "BranchSuite",
    "CheckEntryRow",
    "CheckRepository",
    "CheckRow",
    "Claim",
    "ComparisonFilter",
    "ComparisonRepository",
    "ComparisonRow",
    "Database",
    "Delivery",
    "DeliveryRepository",
    "DeliveryRow",
    "DeliveryState",
    "Finished",
    "GateRow",
    "HeldLease",
    "HistoryRepository",
    "Host",
    "HostRepository",
    "HostRow",
    "HostStatus",
    "LogChunkRow",
    "LogRepository",
    "NoHosts",
    "Node",
    "NodeTaskStatus",
    "PruneRepository",
    "Report",
    "ReportKind",
    "ReportRepository",
    "ReportRow",
    "ReservationRow",
    "Statistics",
    "Status",
    "TokenRepository",
    "TokenRow",
    "WebSessionRepository",
    "WebSessionRow",
    "branch_suite_of",
    "deciding",
    "downgrade",
    "is_current",
    "migrate",
    "now",
    "one_line",
    "statistics",
]
