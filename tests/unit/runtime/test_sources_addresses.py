"""Addresses that an https:// source may lead to, and those that it may not."""

import socket
from ipaddress import ip_address, ip_network

import pytest

from finetune_runtime.contract.result import Exit, StepError
from finetune_runtime.sources.addresses import allowed_networks, refusal, resolve

PUBLIC = ["1.1.1.1", "93.184.215.14", "172.32.0.1", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"]
REFUSED = [
    ("127.0.0.1", "loopback"),
    ("127.8.8.8", "loopback"),
    ("::1", "loopback"),
    ("0.0.0.0", "unspecified"),  # noqa: S104  an address to refuse, nothing is bound
    ("::", "unspecified"),
    ("0.1.2.3", "private"),
    ("10.0.0.1", "private"),
    ("172.16.0.1", "private"),
    ("192.168.1.1", "private"),
    ("198.18.0.1", "private"),
    ("fd00:ec2::254", "private"),
    ("fec0::1", "reserved"),
    ("169.254.169.254", "link-local"),
    ("fe80::1", "link-local"),
    ("fe80::1%eth0", "link-local"),
    ("224.0.0.1", "multicast"),
    ("ff02::1", "multicast"),
    ("100.64.0.1", "shared by carriers and clusters"),
    ("100.100.100.200", "shared by carriers and clusters"),
    ("168.63.129.16", "a metadata service"),
    ("192.0.0.192", "reserved"),
    ("240.0.0.1", "private"),
    ("255.255.255.255", "private"),
    ("192.88.99.1", "a 6to4 relay"),
    ("2002:7f00:1::", "a 6to4 tunnel"),
    ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "a Teredo tunnel"),
    ("2001:db8::1", "private"),
    ("100::1", "private"),
    ("4000::1", "reserved"),
    ("::127.0.0.1", "reserved"),  # IPv4-compatible, of an old standard
    ("64:ff9b:1::1", "reserved"),  # a translation prefix that only its own network knows
    ("::ffff:127.0.0.1", "loopback"),
    ("::ffff:169.254.169.254", "link-local"),
    ("::ffff:10.0.0.1", "private"),
    ("64:ff9b::127.0.0.1", "loopback"),
    ("64:ff9b::10.0.0.1", "private"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_taken(address: str) -> None:
    assert refusal(ip_address(address)) == ""


@pytest.mark.parametrize(("address", "what"), REFUSED)
def test_all_others_are_refused_by_what_they_are(address: str, what: str) -> None:
    assert refusal(ip_address(address)) == what


def test_an_allowed_network_is_taken_and_nothing_beside_it() -> None:
    allowed = [ip_network("10.1.0.0/16"), ip_network("fd00::/64")]
    assert not any(refusal(ip_address(address), allowed) for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "1.1.1.1"))
    assert all(refusal(ip_address(address), allowed) for address in ("10.2.0.1", "fd00:0:0:1::1", "127.0.0.1"))


# The resolver also understands what no browser shows as a number.
@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "::1", "::ffff:7f00:1"])
def test_no_spelling_of_an_address_gets_around(host: str) -> None:
    with pytest.raises(StepError, match=r"which is loopback; https:// sources are read from public addresses only.*sources\.allowedCIDRs") as caught:
        resolve(host, 443, [])
    assert caught.value.code is Exit.INVALID_CONFIG


def test_one_refused_address_among_several_refuses_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("1.1.1.1", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    with pytest.raises(StepError, match=r"rebind\.example has the address 10\.0\.0\.1, which is private"):
        resolve("rebind.example", 443, [])
    assert resolve("rebind.example", 443, [ip_network("10.0.0.0/8")]) == [ip_address("1.1.1.1"), ip_address("10.0.0.1")]


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example"])
def test_what_is_no_host_name_is_the_users_fault(host: str) -> None:
    with pytest.raises(StepError, match="is not the name of a host") as caught:
        resolve(host, 443, [])
    assert caught.value.code is Exit.INVALID_CONFIG


def test_allowed_networks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINETUNE_ALLOWED_CIDRS", raising=False)
    assert allowed_networks() == []
    monkeypatch.setenv("FINETUNE_ALLOWED_CIDRS", "10.1.0.0/16, fd00::/8,")
    assert allowed_networks() == [ip_network("10.1.0.0/16"), ip_network("fd00::/8")]
    monkeypatch.setenv("FINETUNE_ALLOWED_CIDRS", "10.1.0.1/16")
    with pytest.raises(StepError, match=r"FINETUNE_ALLOWED_CIDRS is wrong: 10\.1\.0\.1/16 has host bits set"):
        allowed_networks()
