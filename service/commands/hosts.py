"""`clipwatch hosts`: the hosts of a fleet, and what they do."""

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from service.store import HostStatus


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print an object a host, as a list.")
def hosts(as_json: bool) -> None:
    """List the hosts of a fleet: address, GPUs, when last heard of, and the comparison that holds them."""
    from service.settings import get_settings
    from service.store import Database, HostRepository, now

    database = Database(get_settings().database)
    try:
        with database.read() as session:
            moment = now(session)
            found = HostRepository(session).all(moment)
    finally:
        database.close()
    documents = [_document(sight, (moment - sight.heartbeat_at).total_seconds()) for sight in found]
    if as_json:
        click.echo(json.dumps(documents, indent=2))
        return
    if not documents:
        click.echo("no host has registered: workers do with CLIPWATCH_LAUNCHER=fleet")
    for document in documents:
        state = click.style("alive", fg="green") if document["alive"] else click.style("gone", fg="red")
        holder = f"{document['comparison']} node {document['node']}" if document["comparison"] else "free"
        click.echo(
            f"{document['name']:<20} {state:<5}  {document['address']:<15} {document['nic']:<10} "
            f"{document['gpus']} GPUs  heard {document['heard_seconds_ago']:.0f} s ago  {holder}"
        )


def _document(sight: "HostStatus", ago: float) -> dict[str, object]:
    host = sight.host
    return {
        "name": host.name,
        "alive": sight.alive,
        "address": host.address,
        "nic": host.nic,
        "gpus": host.gpus,
        "queue": host.queue,
        "worker": sight.worker,
        "heard_seconds_ago": ago,
        "comparison": sight.comparison,
        "node": sight.node,
    }
