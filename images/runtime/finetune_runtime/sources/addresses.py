"""Which addresses an https:// source may lead to: public ones, and the networks that the cluster's administrator allows.

A user chooses the URL, and the pod stands inside the cluster's network: without this a job could read metadata services of the
cloud, the API server's neighbours and other tenants' services.
"""

import os
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from finetune_runtime.contract.config import ALLOWED_CIDRS_ENV
from finetune_runtime.contract.result import Exit, Reason, StepError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# What `ipaddress` calls global and a pod should not reach all the same, with the word that the user gets to read.
_SPECIAL: tuple[tuple[Network, str], ...] = (
    (ip_network("168.63.129.16/32"), "a metadata service"),  # Azure's, on every node, at an address that looks public
    (ip_network("100.64.0.0/10"), "shared by carriers and clusters"),
    (ip_network("192.0.0.0/24"), "reserved"),  # Oracle's metadata service among others; known to newer Pythons only in part
    (ip_network("192.88.99.0/24"), "a 6to4 relay"),
    (ip_network("2002::/16"), "a 6to4 tunnel"),
    (ip_network("2001::/32"), "a Teredo tunnel"),
)
_NAT64 = ip_network("64:ff9b::/96")  # an IPv6-only cluster reaches public IPv4 servers by it
_UNICAST = ip_network("2000::/3")  # all that is public in IPv6


def resolve(host: str, port: int, allowed: Iterable[Network]) -> list[Address]:
    """Addresses of the host in the resolver's order, each of which may be reached.

    Connect to one of these and do not ask the resolver again: its second answer may be another one. Raises StepError InvalidConfig when any
    of them is refused, socket.gaierror when the name cannot be resolved.
    """
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # empty or very long labels
        raise StepError(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, f"{host} is not the name of a host: correct the source's URL.") from error
    found = dict.fromkeys(ip_address(entry[4][0]) for entry in entries)
    networks = tuple(allowed)
    for address in found:
        if why := refusal(address, networks):
            raise StepError(
                Exit.INVALID_CONFIG,
                Reason.INVALID_CONFIG,
                f"{host} has the address {address}, which is {why}; https:// sources are read from public addresses only. Copy the data to S3 or a "
                "volume, or have the cluster's administrator allow the network with the chart's value sources.allowedCIDRs.",
            )
    return list(found)


def refusal(address: Address, allowed: Iterable[Network] = ()) -> str:
    """What kind of address this is when it must not be reached; empty when it may be."""
    target = _target(address)
    if any(target in network for network in allowed):
        return ""
    for network, what in _SPECIAL:
        if target in network:
            return what
    kinds = {
        "unspecified": target.is_unspecified,
        "loopback": target.is_loopback,
        "link-local": target.is_link_local,
        "multicast": target.is_multicast,
        "private": target.is_private,
        "reserved": target.is_reserved or not target.is_global or (target.version == 6 and target not in _UNICAST),
    }
    return next((what for what, holds in kinds.items() if holds), "")


def allowed_networks() -> list[Network]:
    """Networks that the cluster's administrator allows beside public addresses. Raises StepError InvalidConfig for what is no network."""
    try:
        return [ip_network(text.strip()) for text in os.environ.get(ALLOWED_CIDRS_ENV, "").split(",") if text.strip()]
    except ValueError as error:
        raise StepError(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, f"{ALLOWED_CIDRS_ENV} is wrong: {error}. Correct sources.allowedCIDRs.") from error


def _target(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, else the address itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
