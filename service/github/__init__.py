"""GitHub: its REST API and its webhooks, and nothing else.

A webhook request only stores what it received. `service.checks` plans checks from it, `service.reports` decides what is
reported to GitHub. Nothing here runs code of a commit.
"""

from service.github.webhook import router

__all__ = ["router"]
