"""Finds branches that have a new head by `git ls-remote`, for services that no webhook can reach."""

import hashlib

from sqlalchemy.exc import IntegrityError

from service.checks.events import Pushed
from service.checks.rules_file import read_rules
from service.git import branches
from service.settings import Settings
from service.store import Database, Delivery, DeliveryRepository, now

SOURCE = "watch"


class Watch:
    """Compares the heads of branches with those that were stored last, and stores a delivery for each new one.

    Only branches that a rule names count. Two processes that watch the same repository store a new head once.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings

    def look(self) -> int:
        """Looks at the remote once. Returns how many branches have a new head.

        Raises:
            GitError: the remote cannot be reached.
            RulesError: the rules cannot be read.
        """
        rules = read_rules(self._settings)
        if rules is None:
            return 0
        heads = branches(self._settings.opacus_remote)
        watched = {name: sha for name, sha in heads.items() if any(rule.has_branch(name) for rule in rules.rules)}
        return sum(self._remember(rules.repository, name, sha) for name, sha in watched.items())

    def _remember(self, repository: str, branch: str, sha: str) -> bool:
        try:
            with self._database.write() as session:
                deliveries = DeliveryRepository(session)
                last = deliveries.last_seen(SOURCE, repository, branch)
                if last is not None and last.sha == sha:
                    return False
                event = Pushed(before=last.sha if last else None)
                # With the id of the last row in it: a branch may return to a commit that it had before.
                named = hashlib.sha256(branch.encode()).hexdigest()[:16]
                guid = f"{SOURCE}-{last.id if last else 0}-{sha}-{named}"
                delivery = Delivery(
                    guid, SOURCE, event.kind, repository, event.model_dump(mode="json"), branch=branch, sha=sha
                )
                return deliveries.remember(delivery, now(session))
        except IntegrityError:
            return False
