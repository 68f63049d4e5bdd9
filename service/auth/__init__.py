"""Authentication and rate limits: tokens, their scopes, sessions of the dashboard.

Nothing here knows of HTTP: `service.api.access` and `service.web.visitor` apply it to requests.
"""

from service.auth.caller import NO_ACCESS, UNRESTRICTED, Authenticator, Caller
from service.auth.limiter import Limiter, TooMany
from service.auth.token import MalformedToken, NewToken, Scope, csrf_of, hash_secret, new_secret, new_token, parse_token

__all__ = [
    "NO_ACCESS",
    "UNRESTRICTED",
    "Authenticator",
    "Caller",
    "Limiter",
    "MalformedToken",
    "NewToken",
    "Scope",
    "TooMany",
    "csrf_of",
    "hash_secret",
    "new_secret",
    "new_token",
    "parse_token",
]
