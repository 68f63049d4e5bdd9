"""What a token is: `cw_<public id>_<secret>`, of which only a hash of the secret is kept.

The secret has 256 random bits. Slow hashes as bcrypt are for passwords, which people choose and others guess; nobody
guesses this one, and a slow hash in front of every request would only help whoever wants to keep the service busy.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from enum import StrEnum

SECRET_BYTES = 32
SHAPE = re.compile(r"cw_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


class Scope(StrEnum):
    """What a token opens: looking; also submitting, cancelling and running again; also handing out tokens."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"

    def covers(self, other: "Scope") -> bool:
        """Whether whoever has this scope may do what needs the other."""
        order = list(Scope)
        return order.index(self) >= order.index(other)


class MalformedToken(ValueError):
    """This is no token of Clipwatch. The text is not repeated: it may be a secret of somewhere else."""

    def __init__(self) -> None:
        super().__init__("not a token of Clipwatch")


@dataclass(frozen=True)
class NewToken:
    """A token as it is shown, once. It does not show up in a `repr`."""

    public_id: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        return f"cw_{self.public_id}_{self.secret}"


def new_token() -> NewToken:
    """A token that nobody else has."""
    return NewToken(secrets.token_hex(6), new_secret())


def new_secret() -> str:
    """256 random bits in 43 characters that fit in a header, a cookie and a URL."""
    return secrets.token_urlsafe(SECRET_BYTES)


def parse_token(text: str) -> NewToken:
    """The two parts of a token.

    Raises:
        MalformedToken: it has another shape.
    """
    found = SHAPE.fullmatch(text)
    if found is None:
        raise MalformedToken
    return NewToken(*found.groups())


def hash_secret(secret: str) -> str:
    """SHA-256 in 64 hex digits: what is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def csrf_of(secret: str) -> str:
    """What a form must bring along from whoever has this secret in a cookie, and what does not give it away."""
    return hmac.new(secret.encode(), b"csrf", hashlib.sha256).hexdigest()
