"""How a host describes itself, and that it is listed while it is up."""

import json
import os
import signal
import threading

import pytest
from click.testing import CliRunner

from service.cli import cli
from service.settings import Settings, get_settings
from tests.waiting import until
from worker.fleet.membership import HostError, Membership, describe_host
from worker.launch import LocalLauncher

NO_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def described(**given):
    return describe_host(Settings(**given), LocalLauncher(NO_GPU))


def test_interface_and_address_follow_from_each_other():
    by_name, by_address = described(host_name="a", host_nic="lo"), described(host_name="a", host_address="127.0.0.1")
    assert by_name == by_address
    assert (by_name.address, by_name.nic, by_name.queue) == ("127.0.0.1", "lo", "clipwatch.host.a")
    assert described(host_nic="lo", host_address="192.0.2.7").address == "192.0.2.7"


@pytest.mark.parametrize("given", [{"host_nic": "eth99"}, {"host_address": "192.0.2.7"}])
def test_an_interface_that_is_not_here_is_an_error_that_names_those_that_are(given):
    with pytest.raises(HostError, match=r"^no interface is (eth99|192\.0\.2\.7): set .*; up are .*lo 127\.0\.0\.1"):
        described(**given)


@pytest.mark.parametrize("name", ["two words", "-a", "x" * 64])
def test_a_name_that_cannot_name_a_queue_is_refused(name):
    with pytest.raises(ValueError, match="host_name"):
        Settings(host_name=name)


@pytest.mark.parametrize("ports", ["29400", "1-2", "30000-29000", "29400-70000"])
def test_ports_that_are_no_range_are_refused(ports):
    with pytest.raises(ValueError, match="must be a range of ports from 1024 on, such as 29400-29499"):
        Settings(fleet_ports=ports)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_host_is_listed_while_it_is_up_and_ends_when_another_takes_its_name(database, database_url) -> None:
    settings = Settings(database_url=database_url, host_name="a", host_nic="lo", heartbeat_seconds=0.05)
    host, told = describe_host(settings, LocalLauncher(NO_GPU)), threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        with Membership(database, host, settings) as first:
            assert [(each["name"], each["alive"]) for each in listed(database_url)] == [("a", True)]
            with Membership(database, host, settings) as second:
                assert first.incarnation != second.incarnation
                until(told.is_set)
        assert [(each["name"], each["alive"]) for each in listed(database_url)] == [("a", False)]
    finally:
        signal.signal(signal.SIGTERM, before)


def listed(database_url: str) -> list[dict]:
    get_settings.cache_clear()
    try:
        done = CliRunner().invoke(cli, ["hosts", "--json"], env={"CLIPWATCH_DATABASE_URL": database_url})
    finally:
        get_settings.cache_clear()
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)
