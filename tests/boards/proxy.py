"""A TCP proxy on loopback that makes a network of it: slow, far away, stalled or cut."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

CHUNK_BYTES = 1 << 14
# What a switch or a Wi-Fi adapter holds beside what is under way on the line itself.
BUFFER_BYTES = 1 << 18
RECEIVE_BYTES = 1 << 16
# The line of a proxy without a rate holds this much, as TCP's largest default window does.
UNLIMITED_BYTES = 4 << 20
END = b""


class _Line:
    """One direction of the network, shared by all connections: bytes leave one after the other."""

    def __init__(self, rate_bytes_s: float | None, delay_s: float) -> None:
        self._rate_bytes_s = rate_bytes_s
        self._delay_s = delay_s
        self._free_s = 0.0
        self.carried_bytes = 0
        held = UNLIMITED_BYTES if rate_bytes_s is None else int(2 * rate_bytes_s * delay_s)
        self.chunks = (BUFFER_BYTES + held) // CHUNK_BYTES

    def arrival_s(self, size_bytes: int, now_s: float) -> float:
        """When the last of ``size_bytes`` that are handed in now comes out at the other end."""
        self.carried_bytes += size_bytes
        if self._rate_bytes_s is not None:
            self._free_s = max(self._free_s, now_s) + size_bytes / self._rate_bytes_s
            now_s = self._free_s
        return now_s + self._delay_s


class Proxy:
    """Carries connections to a loopback port; a context manager.

    ``rate_bytes_s`` bounds each direction (all connections together), ``delay_s`` is one way.
    Clients connect to ``port``. What ``stall``, ``abandon`` and ``cut`` do has happened when they
    return.
    """

    def __init__(
        self, target_port: int, *, rate_bytes_s: float | None = None, delay_s: float = 0.0
    ) -> None:
        self._target = ("127.0.0.1", target_port)
        self._up, self._down = _Line(rate_bytes_s, delay_s), _Line(rate_bytes_s, delay_s)
        self._listener = socket.create_server(("127.0.0.1", 0))
        # Fixed before the first connection; the kernel would take in megabytes for a stalled line.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._moving = asyncio.Event()
        self._moving.set()
        self._links: dict[asyncio.Task[None], asyncio.Event] = {}
        self._accepting = self._loop.create_task(self._accept())
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def carried_bytes(self) -> tuple[int, int]:
        """Bytes that clients have sent, and that they were sent."""
        return self._up.carried_bytes, self._down.carried_bytes

    def stall(self) -> None:
        """Deliver nothing more, close nothing, answer no new connection; ``resume`` goes on."""
        self._do(self._moving.clear)

    def resume(self) -> None:
        """Deliver what was held up."""
        self._do(self._moving.set)

    def abandon(self) -> int:
        """Never deliver anything on the connections there are; how many that concerns.

        New ones work, as after a NAT's time-out or a changed address: neither end learns that the
        other has gone.
        """
        links = [moving for moving in self._links.values() if moving.is_set()]
        self._do(lambda: [moving.clear() for moving in links])
        return len(links)

    def cut(self) -> int:
        """Reset every connection (RST at both ends); how many there were. New ones work."""
        return int(self._wait(self._cut()))

    def close(self) -> None:
        """Reset every connection and stop listening."""
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._listener.close()

    # --- in the loop's thread -------------------------------------------------------------------

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10.0)

    def _do(self, action: Callable[[], object]) -> None:
        async def act() -> None:
            action()

        self._wait(act())

    async def _cut(self) -> int:
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)
        return len(links)

    async def _close(self) -> None:
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        await self._cut()

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            moving = asyncio.Event()
            moving.set()
            link = self._loop.create_task(self._carry(client, moving))
            self._links[link] = moving
            link.add_done_callback(self._links.pop)
            # A link that is cut before it has begun closes nothing itself.
            link.add_done_callback(lambda _link, client=client: client.close())

    async def _carry(self, client: socket.socket, moving: asyncio.Event) -> None:
        server = socket.socket()
        pumps: list[asyncio.Task[None]] = []
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reset = True
        try:
            await self._moving.wait()
            await self._loop.sock_connect(server, self._target)
            for source, target, line in (
                (client, server, self._up),
                (server, client, self._down),
            ):
                pumps.append(self._loop.create_task(self._pump(source, target, line, moving)))
            await asyncio.gather(*pumps)
            reset = False
        except OSError:
            pass  # one end was reset: so is the other
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in (client, server):
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.close()

    async def _pump(
        self, source: socket.socket, target: socket.socket, line: _Line, moving: asyncio.Event
    ) -> None:
        under_way: asyncio.Queue[tuple[float, bytes | OSError]] = asyncio.Queue(line.chunks)
        filling = self._loop.create_task(self._fill(source, line, under_way))
        try:
            while True:
                due_s, data = await under_way.get()
                await asyncio.sleep(due_s - self._loop.time())
                await self._moving.wait()
                await moving.wait()
                if isinstance(data, OSError):
                    raise data
                if data == END:
                    with contextlib.suppress(OSError):
                        target.shutdown(socket.SHUT_WR)
                    return
                await self._loop.sock_sendall(target, data)
        finally:
            filling.cancel()
            await asyncio.gather(filling, return_exceptions=True)

    async def _fill(
        self,
        source: socket.socket,
        line: _Line,
        under_way: asyncio.Queue[tuple[float, bytes | OSError]],
    ) -> None:
        data: bytes | OSError = b"?"
        while data != END and not isinstance(data, OSError):
            try:
                data = await self._loop.sock_recv(source, CHUNK_BYTES)
            except OSError as error:
                data = error  # delivered in its turn: a stalled line carries no reset either
            size_bytes = 0 if isinstance(data, OSError) else len(data)
            await under_way.put((line.arrival_s(size_bytes, self._loop.time()), data))
