"""Branches that moved, by `git ls-remote`: for services that no webhook can reach."""

import hashlib

from sqlalchemy.exc import IntegrityError

from service.checks.events import Pushed
from service.checks.rules_file import read_rules
from service.git import branches
from service.settings import Settings
from service.store import Database, Delivery, DeliveryRepository, now

SOURCE = "watch"


class Watch:
    """Compares the remote's branches with what was last seen of them, and remembers those that moved.

    Only branches that a rule names are looked at. Two that watch the same repository remember a move once.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings

    def look(self) -> int:
        """How many branches moved since the last look.

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
                heard = Pushed(before=last.sha if last else None)
                # The row before makes a move unique: a branch may come back to where it was.
                named = hashlib.sha256(branch.encode()).hexdigest()[:16]
                guid = f"{SOURCE}-{last.id if last else 0}-{sha}-{named}"
                delivery = Delivery(
                    guid, SOURCE, heard.kind, repository, heard.model_dump(mode="json"), branch=branch, sha=sha
                )
                return deliveries.remember(delivery, now(session))
        except IntegrityError:
            return False
