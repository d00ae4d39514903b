"""Addresses that stay on this machine: the only ones where TLS may be left out."""

import ipaddress


def is_loopback(address: str) -> bool:
    """Does HOST:PORT stay on this machine?"""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
