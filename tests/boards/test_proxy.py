"""The proxy's own promises, between a plain client and a server that answers in capitals."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.boards.proxy import Proxy

SILENCE_S = 0.3


def _answer(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while data := connection.recv(1 << 16):
            connection.sendall(data.upper())


@pytest.fixture
def server() -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=_answer, args=(connection,)))
                threads[-1].start()

    accepting = threading.Thread(target=serve)
    accepting.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    accepting.join()
    for thread in threads:
        thread.join()


def _client(proxy: Proxy) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", proxy.port), 10.0)
    client.settimeout(10.0)
    return client


def _all(client: socket.socket, size_bytes: int) -> bytes:
    data = b""
    while len(data) < size_bytes:
        part = client.recv(1 << 16)
        assert part, f"ended after {len(data)} bytes"
        data += part
    return data


def _is_silent(client: socket.socket) -> bool:
    client.settimeout(SILENCE_S)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(10.0)
    return False


def test_bytes_and_the_end_of_either_side_arrive(server: int) -> None:
    with Proxy(server) as proxy, _client(proxy) as client:
        client.sendall(b"x" * 300_000)
        client.shutdown(socket.SHUT_WR)
        assert _all(client, 300_000) == b"X" * 300_000
        assert client.recv(1) == b""
        assert proxy.carried_bytes == (300_000, 300_000)


def test_rate_bounds_what_arrives(server: int) -> None:
    # 200,000 bytes at 1 MB/s take 0.2 s there; the answer follows on the heels.
    with Proxy(server, rate_bytes_s=1e6) as proxy, _client(proxy) as client:
        start_s = time.monotonic()
        client.sendall(b"x" * 200_000)
        _all(client, 200_000)
        assert time.monotonic() - start_s >= 0.2


def test_delay_holds_for_each_way(server: int) -> None:
    with Proxy(server, delay_s=0.05) as proxy, _client(proxy) as client:
        start_s = time.monotonic()
        client.sendall(b"x")
        _all(client, 1)
        assert time.monotonic() - start_s >= 0.1


def test_stalled_line_is_silent_until_it_resumes_and_loses_nothing(server: int) -> None:
    with Proxy(server) as proxy, _client(proxy) as client:
        client.sendall(b"a")
        assert _all(client, 1) == b"A"
        proxy.stall()
        client.sendall(b"b")
        with _client(proxy) as late:
            late.sendall(b"c")
            assert _is_silent(client)
            assert _is_silent(late)
            proxy.resume()
            assert _all(client, 1) == b"B"
            assert _all(late, 1) == b"C"


def test_abandoned_connection_is_silent_for_ever_but_new_ones_work(server: int) -> None:
    with Proxy(server) as proxy, _client(proxy) as client:
        client.sendall(b"a")
        assert _all(client, 1) == b"A"
        proxy.abandon()
        client.sendall(b"b")
        with _client(proxy) as fresh:
            fresh.sendall(b"c")
            assert _all(fresh, 1) == b"C"
            assert _is_silent(client)


def test_cut_resets_what_there_is_and_new_connections_work(server: int) -> None:
    with Proxy(server) as proxy, _client(proxy) as client:
        client.sendall(b"a")
        assert _all(client, 1) == b"A"
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with _client(proxy) as fresh:
            fresh.sendall(b"c")
            assert _all(fresh, 1) == b"C"


def test_target_where_nobody_listens_resets_the_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with Proxy(port) as proxy, pytest.raises(ConnectionResetError), _client(proxy) as client:
        client.recv(1)
