"""`clipwatch hosts`: the hosts of a fleet, and the comparison that each of them runs."""

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from service.store import HostStatus


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object for each host.")
def hosts(as_json: bool) -> None:
    """List the hosts of a fleet: address, GPUs, last heartbeat, and the comparison that holds each."""
    from service.settings import get_settings
    from service.store import Database, HostRepository, now

    database = Database(get_settings().database)
    try:
        with database.read() as session:
            moment = now(session)
            found = HostRepository(session).all(moment)
    finally:
        database.close()
    documents = [_document(status, (moment - status.heartbeat_at).total_seconds()) for status in found]
    if as_json:
        click.echo(json.dumps(documents, indent=2))
        return
    if not documents:
        click.echo("no host has registered: a worker with CLIPWATCH_LAUNCHER=fleet registers its host")
    for document in documents:
        state = click.style("alive", fg="green") if document["alive"] else click.style("gone", fg="red")
        holder = f"{document['comparison']} node {document['node']}" if document["comparison"] else "free"
        click.echo(
            f"{document['name']:<20} {state:<5}  {document['address']:<15} {document['nic']:<10} "
            f"{document['gpus']} GPUs  last heartbeat {document['heard_seconds_ago']:.0f} s ago  {holder}"
        )


def _document(status: "HostStatus", ago: float) -> dict[str, object]:
    host = status.host
    return {
        "name": host.name,
        "alive": status.alive,
        "address": host.address,
        "nic": host.nic,
        "gpus": host.gpus,
        "queue": host.queue,
        "worker": status.worker,
        "heard_seconds_ago": ago,
        "comparison": status.comparison,
        "node": status.node,
    }
