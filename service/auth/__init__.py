"""Who is asking and what they may do: tokens, sessions of the dashboard, and how often one may ask.

Nothing here speaks HTTP: `service.api.access` and `service.web.visitor` turn what is found here into answers.
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
