"""The texts about a check on GitHub: check run, commit status, sticky comment.

Messages of findings and errors come from the code of the commit, which nobody may have reviewed. They are shown as
Markdown code, so that they can neither mention a user nor look like a text of Clipwatch.
"""

from collections.abc import Sequence
from typing import Any

from service.contract import Transition, Verdict
from service.reports.links import check_url, comparison_url, plot_url
from service.store import CheckEntryRow, CheckRow, Status

EMOJI = {"passed": "✅", "failed": "❌", "error": "⚠️", "unsupported": "∅", "cancelled": "⏹️"}
CONCLUSIONS = {
    Verdict.PASSED: "success",
    Verdict.FAILED: "failure",
    Verdict.ERROR: "failure",
    Verdict.UNSUPPORTED: "neutral",
    Verdict.CANCELLED: "cancelled",
}
STATES = {Verdict.PASSED: "success", Verdict.FAILED: "failure", Verdict.UNSUPPORTED: "success"}
PICTURES = ("loss_difference.png", "loss.png")
# GitHub accepts 65,535 characters. The page of the check has the rest.
LONGEST = 60_000
MOST_ENTRIES = 100
MOST_FINDINGS = 20
MOST_CHARACTERS = 300
DESCRIPTION = 140


def name_of(check: CheckRow) -> str:
    """The name of the check run or status on GitHub; branch protection may require it."""
    return f"clipwatch / {check.suite}"


def headline(check: CheckRow) -> str:
    """The state of the check in one line."""
    total, verdicts = len(check.entries), [entry.comparison.verdict for entry in check.entries]
    if check.status == Status.QUEUED:
        return f"waiting for a worker: {total} comparisons"
    if check.status == Status.RUNNING:
        return f"{check.done} of {total} comparisons done"
    counts = [f"{verdicts.count(verdict.value)} {verdict.value}" for verdict in Verdict if verdict.value in verdicts]
    return ", ".join(counts) + (f" ({check.reason})" if check.reason else "")


def check_run(check: CheckRow, public_url: str) -> dict[str, Any]:
    """The values of a check run, all but its commit."""
    values: dict[str, Any] = {
        "name": name_of(check),
        "external_id": check.public_id,
        "started_at": check.created_at,
        "status": {Status.QUEUED: "queued", Status.RUNNING: "in_progress"}.get(Status(check.status), "completed"),
        "output": {"title": headline(check), "summary": summary(check, public_url)} | _images(check, public_url),
    }
    if public_url:
        values["details_url"] = check_url(public_url, check.public_id)
    if check.verdict is not None:
        values |= {"conclusion": CONCLUSIONS[Verdict(check.verdict)], "completed_at": check.finished_at}
    return values


def status(check: CheckRow, public_url: str) -> dict[str, str]:
    """The values of a commit status: its state and one line of text."""
    ended = STATES.get(Verdict(check.verdict), "error") if check.verdict else "pending"
    line = headline(check)
    values = {
        "state": ended,
        "context": name_of(check),
        "description": line if len(line) <= DESCRIPTION else f"{line[: DESCRIPTION - 1]}…",
    }
    url = check_url(public_url, check.public_id)
    return values | ({"target_url": url} if url else {})


def marker(repository: str, pull: int) -> str:
    """An HTML comment by which the sticky comment is found again. GitHub does not show it."""
    return f"<!-- clipwatch {repository}#{pull} -->"


def comment(repository: str, pull: int, sha: str, checks: Sequence[CheckRow], waits: bool, public_url: str) -> str:
    """The sticky comment of a pull request: every check of its newest commit, and if that waits, how to approve it."""
    parts = [marker(repository, pull), f"### Clipwatch on {sha}"]
    if waits:
        parts.append(
            # Within a sentence: the comment itself must not read as the command that it explains.
            f"This commit waits. A person with write permission who has read it starts its checks with a comment that "
            f"has `/clipwatch run {sha}` on a line of its own. A commit that is pushed afterwards waits again."
        )
    for check in checks:
        verdict = check.verdict or check.status
        title = f"{EMOJI.get(verdict, '⏳')} **{name_of(check)}**: {headline(check)}"
        parts += [title, summary(check, public_url)]
    return _cut("\n\n".join(parts))


def summary(check: CheckRow, public_url: str) -> str:
    """A table of the entries, then the errors, findings and failed gates."""
    lines = ["| entry | verdict | |", "| --- | --- | --- |"]
    lines += [_row(entry, public_url) for entry in check.entries[:MOST_ENTRIES]]
    if len(check.entries) > MOST_ENTRIES:
        lines.append(f"| … {len(check.entries) - MOST_ENTRIES} more | | |")
    details = [text for entry in check.entries if (text := _details(entry))]
    parts = ["\n".join(lines), *details[:MOST_FINDINGS]]
    if len(details) > MOST_FINDINGS:
        parts.append(f"… and {len(details) - MOST_FINDINGS} more.")
    return _cut("\n\n".join(parts))


def code(text: str) -> str:
    """The text as a code span on one line, whatever characters it contains."""
    line = " ".join(text.split())
    line = line if len(line) <= MOST_CHARACTERS else f"{line[: MOST_CHARACTERS - 1]}…"
    return f"`{line.replace('`', 'ˋ').replace('|', '¦')}`" if line else ""


def _cut(text: str) -> str:
    """The longest start of the text that GitHub accepts, in whole lines."""
    return text if len(text) <= LONGEST else text[:LONGEST].rpartition("\n")[0] + "\n\n… cut short."


def _row(entry: CheckEntryRow, public_url: str) -> str:
    verdict = entry.comparison.verdict or entry.comparison.status
    name = code(entry.name)
    url = comparison_url(public_url, entry.comparison.public_id)
    shown = f"[{name}]({url})" if url else name
    change = f"**{entry.transition}**" if entry.transition in (Transition.NEWLY_FAILING, Transition.FIXED) else ""
    return f"| {shown} | {EMOJI.get(verdict, '⏳')} {verdict} | {change or entry.transition or ''} |"


def _details(entry: CheckEntryRow) -> str:
    comparison = entry.comparison
    if comparison.verdict in (None, Verdict.PASSED, Verdict.CANCELLED):
        return ""
    lines = [f"**{code(entry.name)}** {comparison.verdict}"]
    if comparison.error:
        lines.append(f"- {code(comparison.error)}")
    for finding in comparison.findings:
        place = {"step": finding.step, "parameter": finding.parameter, "rank": finding.rank}
        where = ", ".join(f"{key} {value}" for key, value in place.items() if value is not None)
        lines.append(f"- {code(finding.message)}{f' at {code(where)}' if where else ''}")
    for gate in comparison.gates:
        if not gate.passed:
            observed = "not measured" if gate.observed is None else f"observed {gate.observed:.3g}"
            lines.append(f"- gate {code(gate.metric)} ({gate.subject}): {observed}, limit {gate.limit:.3g}")
    return "\n".join(lines[:MOST_FINDINGS])


def _images(check: CheckRow, public_url: str) -> dict[str, Any]:
    """A plot of the first failed entry that has one, else of the first entry that has one."""
    if not public_url or not check.verdict:
        return {}
    ordered = sorted(check.entries, key=lambda entry: entry.comparison.verdict != Verdict.FAILED)
    for entry in ordered:
        names = {artifact.name for artifact in entry.comparison.artifacts}
        for name in PICTURES:
            if name in names:
                url = plot_url(public_url, entry.comparison.public_id, name)
                return {"images": [{"alt": f"{entry.name}: {name}", "image_url": url}]}
    return {}
