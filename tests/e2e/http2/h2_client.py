"""Checks of an HTTP/2 server with the h2 package, one line `ok NAME` each. Argument: the port.

The package validates every frame and header block it receives, so that a wrong one fails the check it comes in.
"""

import socket
import sys

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

PORT = int(sys.argv[1])
E = h2.events
S = h2.settings.SettingCodes


class Client:
    def __init__(self, settings=None):
        self.socket = socket.create_connection(("127.0.0.1", PORT), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        if settings:
            self.h2.local_settings = h2.settings.Settings(client=True, initial_values=settings)
        self.h2.initiate_connection()
        self.streams = {}
        self.events = []
        self.closed = False
        self.release = True
        self.flush()

    def flush(self):
        data = self.h2.data_to_send()
        if data:
            self.socket.sendall(data)

    def headers(self, method, path, more=()):
        return [(":method", method), (":scheme", "http"), (":authority", "t.test"), (":path", path), *more]

    def request(self, path, method="GET", more=(), end=True, **priority):
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, self.headers(method, path, more), end_stream=end, **priority)
        self.streams[stream] = {"body": b"", "status": None, "ended": False, "reset": None, "trailers": None, "headers": {}}
        self.flush()
        return stream

    def step(self):
        """Reads once and takes in what came."""
        data = self.socket.recv(65536)
        if not data:
            self.closed = True
            return []
        events = self.h2.receive_data(data)
        for event in events:
            stream = self.streams.get(getattr(event, "stream_id", None))
            if isinstance(event, E.ResponseReceived):
                stream["headers"] = dict(event.headers)
                stream["status"] = int(stream["headers"][":status"])
            elif isinstance(event, E.DataReceived):
                stream["body"] += event.data
                if self.release:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, E.TrailersReceived):
                stream["trailers"] = dict(event.headers)
            elif isinstance(event, E.StreamEnded):
                stream["ended"] = True
            elif isinstance(event, E.StreamReset) and stream is not None:
                stream["reset"] = event.error_code
        self.events += events
        self.flush()
        return events

    def until(self, condition):
        while not condition():
            assert not self.closed, "the connection was closed"
            self.step()

    def wait(self, stream):
        state = self.streams[stream]
        self.until(lambda: state["ended"] or state["reset"] is not None)
        return state

    def saw(self, kind):
        return any(isinstance(event, kind) for event in self.events)


def good(state, body=b"ok"):
    assert state["status"] == 200 and state["body"] == body, (state["status"], state["body"][:100])


def plain_requests():
    c = Client()
    for _ in range(20):
        good(c.wait(c.request("/")))
    state = c.wait(c.request("/echo", more=[("x-echo", "a value; with, punctuation"), ("x-other", "é")]))
    good(state, b"a value; with, punctuation")
    good(c.wait(c.request("/chunked")), b"hello world")
    state = c.wait(c.request("/empty"))
    assert state["status"] == 204 and state["body"] == b""
    state = c.wait(c.request("/", method="HEAD"))
    assert state["status"] == 200 and state["body"] == b"", state


def header_names_and_compression():
    c = Client()
    for i in range(50):
        stream = c.request("/echo", more=[("x-echo", "v%d" % i), ("x-same", "s" * 200), ("x-%d" % i, "n")])
        state = c.wait(stream)
        good(state, b"v%d" % i)
        for name in state["headers"]:
            assert name == name.lower() and name not in ("connection", "transfer-encoding", "keep-alive"), name
        assert "date" in state["headers"]


def no_compression_table():
    c = Client({S.HEADER_TABLE_SIZE: 0})
    for _ in range(5):
        good(c.wait(c.request("/")))


def upload_within_windows():
    c = Client()
    body = bytes(i % 251 for i in range(300_000))
    stream = c.request("/upload", method="POST", more=[("content-length", str(len(body)))], end=False)
    sent = 0
    while sent < len(body):
        size = min(c.h2.local_flow_control_window(stream), c.h2.max_outbound_frame_size, len(body) - sent)
        if size == 0:
            c.step()
            continue
        c.h2.send_data(stream, body[sent:sent + size], pad_length=7 if size < 1000 else None)
        sent += size
        c.flush()
    c.h2.end_stream(stream)
    c.flush()
    good(c.wait(stream))


def request_trailers():
    c = Client()
    stream = c.request("/", method="POST", end=False)
    c.h2.send_data(stream, b"body")
    c.h2.send_headers(stream, [("x-trailer", "1")], end_stream=True)
    c.flush()
    good(c.wait(stream))


def small_windows():
    c = Client({S.INITIAL_WINDOW_SIZE: 1000})
    c.release = False
    stream = c.request("/large")
    c.until(lambda: len(c.streams[stream]["body"]) >= 1000)
    c.h2.ping(b"after it")
    c.flush()
    c.until(lambda: c.saw(E.PingAckReceived))
    assert len(c.streams[stream]["body"]) == 1000, "more than the window"
    # Another stream has a window of its own.
    good(c.wait(c.request("/")))
    for _ in range(10):
        before = len(c.streams[stream]["body"])
        c.h2.increment_flow_control_window(777, stream)
        c.flush()
        c.until(lambda: len(c.streams[stream]["body"]) == before + 777)
    c.release = True
    c.h2.increment_flow_control_window((1 << 21), stream)
    c.h2.increment_flow_control_window((1 << 21))
    c.flush()
    state = c.wait(stream)
    assert len(state["body"]) == 1 << 20, len(state["body"])


def window_by_settings_midway():
    c = Client({S.INITIAL_WINDOW_SIZE: 0})
    stream = c.request("/large")
    c.until(lambda: c.streams[stream]["status"] == 200)
    c.h2.ping(b"no data!")
    c.flush()
    c.until(lambda: c.saw(E.PingAckReceived))
    assert c.streams[stream]["body"] == b"", "DATA without a window"
    c.h2.update_settings({S.INITIAL_WINDOW_SIZE: 100_000})
    c.flush()
    state = c.wait(stream)
    assert len(state["body"]) == 1 << 20
    # Less again: a window may become negative.
    c.release = False
    c.h2.update_settings({S.INITIAL_WINDOW_SIZE: 10})
    c.flush()
    good(c.wait(c.request("/")))


def frame_size_midway():
    c = Client()
    c.h2.update_settings({S.MAX_FRAME_SIZE: 1 << 20})
    c.flush()
    c.until(lambda: c.saw(E.SettingsAcknowledged))
    assert len(c.wait(c.request("/large"))["body"]) == 1 << 20


def pings():
    c = Client()
    for i in range(20):
        c.h2.ping(b"ping%04d" % i)
    c.flush()
    acks = lambda: [e.ping_data for e in c.events if isinstance(e, E.PingAckReceived)]
    c.until(lambda: len(acks()) == 20)
    assert acks() == [b"ping%04d" % i for i in range(20)], acks()


def priorities():
    c = Client()
    first = c.request("/", priority_weight=200, priority_depends_on=0, priority_exclusive=True)
    second = c.request("/", priority_weight=1, priority_depends_on=first)
    c.h2.prioritize(second, weight=50, depends_on=0)
    c.flush()
    good(c.wait(first))
    good(c.wait(second))


def resets():
    c = Client({S.INITIAL_WINDOW_SIZE: 1000})
    stuck = [c.request("/large") for _ in range(10)]
    c.until(lambda: all(c.streams[s]["status"] for s in stuck))
    for stream in stuck:
        c.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
    c.flush()
    good(c.wait(c.request("/")))


def a_hundred_at_once():
    c = Client()
    streams = [c.request("/echo", more=[("x-echo", "n%d" % i)]) for i in range(100)]
    for i, stream in enumerate(streams):
        good(c.wait(stream), b"n%d" % i)


def a_hundred_large_at_once():
    c = Client({S.INITIAL_WINDOW_SIZE: 65_535})
    streams = [c.request("/large") for _ in range(10)]
    for stream in streams:
        assert len(c.wait(stream)["body"]) == 1 << 20


def goaway_of_the_client():
    c = Client()
    stream = c.request("/large")
    c.until(lambda: c.streams[stream]["status"])
    c.socket.sendall(b"\0\0\x08\x07\0\0\0\0\0" + b"\0" * 8)
    state = c.wait(stream)
    assert len(state["body"]) == 1 << 20
    while not c.closed:
        c.step()


def a_refused_request_harms_nobody():
    c = Client()
    c.h2.config.validate_outbound_headers = False
    c.h2.config.normalize_outbound_headers = False
    other = c.request("/large")
    bad = c.request("/", more=[("connection", "close")])
    assert c.wait(bad)["reset"] == h2.errors.ErrorCodes.PROTOCOL_ERROR, c.streams[bad]
    assert len(c.wait(other)["body"]) == 1 << 20
    good(c.wait(c.request("/")))


CHECKS = [
    plain_requests, header_names_and_compression, no_compression_table, upload_within_windows, request_trailers,
    small_windows, window_by_settings_midway, frame_size_midway, pings, priorities, resets, a_hundred_at_once,
    a_hundred_large_at_once, goaway_of_the_client, a_refused_request_harms_nobody,
]

failed = 0
for check in CHECKS:
    try:
        check()
        print("ok", check.__name__, flush=True)
    except Exception as error:
        failed += 1
        print("FAILED", check.__name__, type(error).__name__, error, flush=True)
sys.exit(1 if failed else 0)
