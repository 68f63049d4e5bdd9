"""Removes secrets from texts that leave the process: logs, errors, responses."""

import re

PASSWORD = re.compile(r"(?<=://)([^:/@\s]*):([^@\s/]+)@")
TOKEN = re.compile(r"\bcw_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
BEARER = re.compile(r"(?i)\b(authorization:\s*|bearer\s+)(?!token\b|<)[A-Za-z0-9._~+/=-]{16,}")


def redact(text: str) -> str:
    """The text with the passwords in URLs, tokens and bearer headers replaced by `***`.

    >>> redact("no answer from postgresql://me:secret@db/clipwatch")
    'no answer from postgresql://me:***@db/clipwatch'
    """
    text = PASSWORD.sub(r"\1:***@", text)
    text = TOKEN.sub(r"cw_\1_***", text)
    return BEARER.sub(r"\1***", text)
