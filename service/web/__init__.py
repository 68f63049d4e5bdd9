"""The dashboard: pages rendered on the server from what the API answers, one module a page.

Everything works without JavaScript but what is live: progress, the log, and a verdict that appears by itself.
`add_dashboard` puts the pages, their static files and the pages for errors on an app that has the API.
"""

from service.web.dashboard import add_dashboard

__all__ = ["add_dashboard"]
