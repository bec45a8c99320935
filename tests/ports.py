"""Ports on loopback for servers that a test starts."""

import socket


def hold_port() -> tuple[socket.socket, int]:
    """A free port, which nobody else is given until the socket is closed.

    The server binds it all the same, as nobody listens there: vLLM's sets SO_REUSEADDR, and JAX's SO_REUSEPORT as well.
    """
    held = socket.socket()
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        held.setsockopt(socket.SOL_SOCKET, option, 1)
    held.bind(("127.0.0.1", 0))
    return held, held.getsockname()[1]
