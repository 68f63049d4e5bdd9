"""Messages for subscribers: a signed webhook, and a message in the format of Slack's incoming webhooks."""

import json
from typing import Any

import requests

from service.github.client import TIMEOUT, Undelivered
from service.github.signature import read_secrets, sign
from service.reports.links import check_url
from service.settings import Settings
from service.store import CheckRow

USER_AGENT = "clipwatch"


def notice(check: CheckRow, public_url: str) -> dict[str, Any]:
    """The document about a check in which entries began to fail, were fixed, or are gone."""
    return {
        "check": check.public_id,
        "repository": check.repository,
        "branch": check.branch,
        "sha": check.sha,
        "title": check.title,
        "suite": check.suite,
        "verdict": check.verdict,
        "url": check_url(public_url, check.public_id),
        "transitions": [
            {"entry": entry.name, "transition": entry.transition, "verdict": entry.comparison.verdict}
            for entry in check.entries
            if entry.transition
        ],
    }


def slack_text(document: dict[str, Any]) -> dict[str, str]:
    """The notice as a message. The three special characters of Slack's format are escaped."""
    where = f"{document['repository']} {document['branch']} {document['sha'][:12]}"
    lines = [f"Clipwatch: {document['suite']} {document['verdict']} on {where}"]
    lines += [f"• {change['entry']}: {change['transition']}" for change in document["transitions"]]
    if document["url"]:
        lines.append(document["url"])
    text = "\n".join(lines)
    return {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}


def post_webhook(settings: Settings, document: dict[str, Any], guid: str) -> None:
    """POSTs the notice, signed as GitHub signs its webhooks if there is a secret. `guid` is the same on every try.

    Raises:
        Undelivered: the secret cannot be read, or the other side did not accept the notice.
    """
    body = json.dumps(document).encode()
    headers = {"X-Clipwatch-Delivery": guid, "X-Clipwatch-Event": "transition"}
    if settings.notify_secret is not None:
        try:
            headers["X-Hub-Signature-256"] = sign(read_secrets(settings.notify_secret)[0], body)
        except (OSError, ValueError) as error:
            raise Undelivered(f"the secret of notifications cannot be read: {error}") from error
    _post(settings.notify_url, body, headers)


def post_slack(settings: Settings, document: dict[str, Any]) -> None:
    """POSTs the notice as a message.

    Raises:
        Undelivered: the other side did not accept it.
    """
    _post(settings.slack_url, json.dumps(slack_text(document)).encode(), {})


def _post(url: str, body: bytes, headers: dict[str, str]) -> None:
    own = {"Content-Type": "application/json", "User-Agent": USER_AGENT}
    try:
        answer = requests.post(url, data=body, headers=own | headers, timeout=TIMEOUT, allow_redirects=False)
    except requests.RequestException as error:
        # The address may contain a secret, and the message of requests repeats the address.
        raise Undelivered(f"cannot be reached: {type(error).__name__}") from error
    if not answer.ok or answer.is_redirect:
        wait = answer.headers.get("Retry-After", "")
        refused = 400 <= answer.status_code < 500 and answer.status_code not in (408, 429)
        raise Undelivered(
            f"answered {answer.status_code}", wait=float(wait) if wait.isdigit() else None, refused=refused
        )
