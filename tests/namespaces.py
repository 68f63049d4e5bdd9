"""Hosts on one machine: network namespaces with addresses of their own, joined by a switch. Linux, as root.

Each has two cables to it: hosts speak with each other over the one, and reach servers over the other.
"""

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pyroute2 import NetNS, netns

NIC, SERVERS_NIC = "eth0", "eth1"
NETWORKS = {NIC: "10.88.77", SERVERS_NIC: "10.88.78"}
# Where a server within the switch is reached by all hosts.
SERVERS = f"{NETWORKS[SERVERS_NIC]}.254"


@dataclass(frozen=True)
class Namespace:
    """A host, by its number: what runs behind `enter` is on these networks and no other."""

    name: str
    switch: str
    number: int

    @property
    def enter(self) -> list[str]:
        """What to write before a command."""
        return entering(self.name)

    @contextmanager
    def cut(self, *nics: str) -> Iterator[None]:
        """The cables of these interfaces are pulled."""
        self._set("down", nics)
        try:
            yield
        finally:
            self._set("up", nics)

    def port(self, nic: str) -> str:
        """What the switch calls its end of a cable."""
        return f"{nic}-{self.number}"

    def _set(self, state: str, nics: Sequence[str]) -> None:
        with NetNS(self.switch) as switch:
            for nic in nics:
                switch.link("set", index=switch.link_lookup(ifname=self.port(nic))[0], state=state)


def entering(name: str) -> list[str]:
    """What to write before a command for it to run in a namespace."""
    return ["nsenter", f"--net=/var/run/netns/{name}", "--"]


def missing() -> str | None:
    """Why this machine cannot have such hosts, or nothing if it can."""
    name = f"cw-{uuid.uuid4().hex[:8]}"
    try:
        netns.create(name)
        netns.remove(name)
    except (OSError, AttributeError) as error:
        return f"no network namespaces for uid {os.getuid()} here: {error}"
    return None


@contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """So many hosts on one switch; gone afterwards."""
    tag = uuid.uuid4().hex[:6]
    # The switch has a namespace too: in the machine's own its firewall would have a say.
    switch = f"cw-{tag}-switch"
    hosts = [Namespace(f"cw-{tag}-{n}", switch, n) for n in range(1, count + 1)]
    made = []
    try:
        for name in (switch, *(host.name for host in hosts)):
            netns.create(name)
            made.append(name)
        with NetNS(switch) as inside:
            for nic in NETWORKS:
                bridge = _bridge(inside, f"all-{nic}")
                if nic == SERVERS_NIC:
                    inside.addr("add", index=bridge, address=SERVERS, prefixlen=24)
                for host in hosts:
                    _plug_in(inside, bridge, host, nic)
        yield hosts
    finally:
        for name in made:
            netns.remove(name)


def _bridge(switch: NetNS, name: str) -> int:
    switch.link("add", ifname=name, kind="bridge")
    index: int = switch.link_lookup(ifname=name)[0]
    switch.link("set", index=index, state="up")
    return index


def _plug_in(switch: NetNS, bridge: int, host: Namespace, nic: str) -> None:
    port = host.port(nic)
    switch.link("add", ifname=port, kind="veth", peer={"ifname": nic, "net_ns_fd": host.name})
    switch.link("set", index=switch.link_lookup(ifname=port)[0], master=bridge, state="up")
    with NetNS(host.name) as there:
        index = there.link_lookup(ifname=nic)[0]
        there.addr("add", index=index, address=f"{NETWORKS[nic]}.{host.number}", prefixlen=24)
        for each in (there.link_lookup(ifname="lo")[0], index):
            there.link("set", index=each, state="up")
