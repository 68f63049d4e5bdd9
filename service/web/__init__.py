"""The dashboard: HTML pages rendered on the server. Each page is a module in `service.web.pages` and a template.

A page works without JavaScript, except for its live parts: progress, the log, and a verdict that appears by itself.
`add_dashboard` adds the pages, their static files and the error pages to an app that has the API.
"""

from service.web.dashboard import add_dashboard

__all__ = ["add_dashboard"]
