"""Forward a loopback port of the machine to an address inside a network namespace.

The listening socket is made before the process enters the namespace and so stays reachable on 127.0.0.1 outside;
connections made afterwards start inside. Nothing else connects the two.
"""

import argparse
import asyncio
import ctypes
import os
import signal
import socket
import struct
from asyncio.trsock import TransportSocket
from pathlib import Path

CLONE_NEWNET = 0x40000000  # <linux/sched.h>
CONNECT_SECONDS = 10
CHUNK_BYTES = 1 << 18


def listen(first: int, last: int) -> socket.socket:
    """Listen on the first free loopback port of the range (both ends included).

    Raises OSError of the last port tried when none is free.
    """
    for port in range(first, last + 1):
        try:
            return socket.create_server(("127.0.0.1", port), backlog=512)
        except OSError:
            if port == last:
                raise
    raise ValueError(f"empty port range {first}-{last}")


def enter_network_namespace(path: Path) -> None:
    """Move the calling thread, and the threads it will start, into the namespace. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns exists only from Python 3.12 on
    with path.open() as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))


async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copy until the source ends, then pass the end on; the other direction stays open (half-close)."""
    while chunk := await source.read(CHUNK_BYTES):
        sink.write(chunk)
        await sink.drain()
    sink.write_eof()


class Forwarder:
    """Serves connections to one target until told to stop."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    async def handle(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """Join one client with the target. A failure on either side resets both: no cut stream may look complete."""
        writers = [client]
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                target_reader, target = await asyncio.open_connection(self.host, self.port, limit=CHUNK_BYTES)
            writers.append(target)
            async with asyncio.TaskGroup() as directions:
                directions.create_task(copy(client_reader, target))
                directions.create_task(copy(target_reader, client))
        except* OSError:  # TimeoutError is one
            for writer in writers:
                abort(writer)
        finally:
            for writer in writers:
                writer.close()

    async def serve(self, listener: socket.socket, ready: Path) -> None:
        """Serve until SIGTERM or SIGINT. ``ready`` receives the port number once connections are accepted."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        server = await asyncio.start_server(self.handle, sock=listener, limit=CHUNK_BYTES)
        partial = ready.with_suffix(".partial")
        partial.write_text(f"{listener.getsockname()[1]}\n")
        partial.rename(ready)  # whoever waits for the file never reads half of it
        await stop.wait()
        server.close()


def abort(writer: asyncio.StreamWriter) -> None:
    """Close with a reset instead of an orderly end. A connection that is gone already is left alone."""
    connection: TransportSocket = writer.get_extra_info("socket")
    if connection.fileno() == -1:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True, metavar="FIRST-LAST", help="loopback ports to try")
    parser.add_argument("--netns", required=True, type=Path, help="network namespace to connect from")
    parser.add_argument("--connect", required=True, metavar="IP:PORT", help="where each connection goes")
    parser.add_argument("--ready", required=True, type=Path, help="file that receives the port")
    arguments = parser.parse_args()
    first, last = map(int, arguments.listen.split("-"))
    host, port = arguments.connect.rsplit(":", 1)

    listener = listen(first, last)
    enter_network_namespace(arguments.netns)
    asyncio.run(Forwarder(host, int(port)).serve(listener, arguments.ready))


if __name__ == "__main__":
    main()
