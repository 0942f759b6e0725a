"""Connections of the HTTP process: the listening socket. It knows no requests."""

import socket


def bind(host: str, port: int) -> socket.socket:
    """The listening address, taken before anything slow. Raises OSError that says what is wrong with it."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as e:
        raise OSError(f"--host {host}: {e.strerror}") from e
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # TCP named: asyncio turns Nagle off then
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as e:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port}: {e.strerror}; choose another --host or --port") from e
    return listener
