"""The format of a token, `cw_<public id>_<secret>`, and of what is stored: a hash of the secret.

The secret has 256 random bits, so it cannot be guessed and a fast hash is enough. A slow hash such as bcrypt protects
passwords that people choose; here it would only let an attacker load the service with wrong tokens.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from enum import StrEnum

SECRET_BYTES = 32
FORMAT = re.compile(r"cw_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


class Scope(StrEnum):
    """What a token allows. `read`: look; `submit`: also submit, cancel and rerun; `admin`: also create tokens."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"

    def covers(self, other: "Scope") -> bool:
        """Whether this scope allows everything that the other one does."""
        order = list(Scope)
        return order.index(self) >= order.index(other)


class MalformedToken(ValueError):
    """The text is not a token of Clipwatch. The message does not repeat it: it may be another service's secret."""

    def __init__(self) -> None:
        super().__init__("not a token of Clipwatch")


@dataclass(frozen=True)
class NewToken:
    """A token with its secret, which a `repr` does not show."""

    public_id: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        """The token as its owner writes it."""
        return f"cw_{self.public_id}_{self.secret}"


def new_token() -> NewToken:
    """A new token from random bits."""
    return NewToken(secrets.token_hex(6), new_secret())


def new_secret() -> str:
    """256 random bits as 43 characters that are allowed in a header, a cookie and a URL."""
    return secrets.token_urlsafe(SECRET_BYTES)


def parse_token(text: str) -> NewToken:
    """The two parts of a token.

    Raises:
        MalformedToken: the text has another format.
    """
    found = FORMAT.fullmatch(text)
    if found is None:
        raise MalformedToken
    return NewToken(*found.groups())


def hash_secret(secret: str) -> str:
    """The SHA-256 of a secret, in 64 hex digits, which is what the database stores."""
    return hashlib.sha256(secret.encode()).hexdigest()


def csrf_of(secret: str) -> str:
    """The CSRF token of forms for the browser with this secret in its cookie. It does not reveal the secret."""
    return hmac.new(secret.encode(), b"csrf", hashlib.sha256).hexdigest()
