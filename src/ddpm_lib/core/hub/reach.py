"""Whether an address can be reached at all, within a moment."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.parse
import urllib.request

PATIENCE = 1.5
"""Seconds that a connection may take."""


def can_reach(address: str) -> bool:
    """Whether a connection to the host of a web address, or to the proxy for it, is made within a
    moment.
    """
    parts = urllib.parse.urlsplit(address)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and parts.hostname and not urllib.request.proxy_bypass(parts.hostname):
        parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    reached: list[bool] = []

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((host or "", port), timeout=PATIENCE).close()
            reached.append(True)

    # A thread, because looking up a name has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return bool(reached)
