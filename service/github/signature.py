"""Signatures of webhooks: HMAC-SHA-256 over the raw body, as GitHub writes them in X-Hub-Signature-256."""

import hmac
from pathlib import Path

PREFIX = "sha256="


def sign(secret: bytes, body: bytes) -> str:
    """The value of the header for a body."""
    return PREFIX + hmac.new(secret, body, "sha256").hexdigest()


def is_signed(secrets: list[bytes], body: bytes, signature: str) -> bool:
    """Whether any of the secrets made the signature. A wrong signature takes as long to compare as a right one."""
    given = signature.encode()
    return any([hmac.compare_digest(sign(secret, body).encode(), given) for secret in secrets])


def read_secrets(path: Path) -> list[bytes]:
    """The secrets of a file, one on each line: during a change both the old and the new one are accepted.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has no secret in it.
    """
    secrets = [line.strip() for line in path.read_bytes().splitlines() if line.strip()]
    if not secrets:
        raise ValueError(f"{path} has no secret in it")
    return secrets
