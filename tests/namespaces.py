"""Hosts on one machine: network namespaces with addresses of their own, joined by a switch. Linux, as root."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pyroute2 import NetNS, netns

NIC = "eth0"


@dataclass(frozen=True)
class Namespace:
    """A host: what runs behind `enter` has this address and no other network."""

    name: str
    address: str
    switch: str
    port: str

    @property
    def enter(self) -> list[str]:
        """What to write before a command."""
        return ["nsenter", f"--net=/var/run/netns/{self.name}", "--"]

    @contextmanager
    def cut(self) -> Iterator[None]:
        """The host is off the network, as with a pulled cable."""
        self._set("down")
        try:
            yield
        finally:
            self._set("up")

    def _set(self, state: str) -> None:
        with NetNS(self.switch) as switch:
            switch.link("set", index=switch.link_lookup(ifname=self.port)[0], state=state)


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
    hosts = [Namespace(f"cw-{tag}-{n}", f"10.88.77.{n}", switch, f"port{n}") for n in range(1, count + 1)]
    made = []
    try:
        for name in (switch, *(host.name for host in hosts)):
            netns.create(name)
            made.append(name)
        with NetNS(switch) as inside:
            inside.link("add", ifname="bridge", kind="bridge")
            bridge = inside.link_lookup(ifname="bridge")[0]
            inside.link("set", index=bridge, state="up")
            for host in hosts:
                _plug_in(inside, bridge, host)
        yield hosts
    finally:
        for name in made:
            netns.remove(name)


def _plug_in(switch: NetNS, bridge: int, host: Namespace) -> None:
    switch.link("add", ifname=host.port, kind="veth", peer={"ifname": NIC, "net_ns_fd": host.name})
    switch.link("set", index=switch.link_lookup(ifname=host.port)[0], master=bridge, state="up")
    with NetNS(host.name) as there:
        nic = there.link_lookup(ifname=NIC)[0]
        there.addr("add", index=nic, address=host.address, prefixlen=24)
        for index in (there.link_lookup(ifname="lo")[0], nic):
            there.link("set", index=index, state="up")
