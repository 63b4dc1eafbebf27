"""Calls service.py through a proxy: calls.py PORT. Prints a line for each check; ends with 1 if one failed."""
import sys
import threading
import time
import traceback

import grpc

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
channel = grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}", options=OPTIONS)
BYTES = "/test.Bytes/"
PATIENCE = 20


def unary(method, request, **more):
    return channel.unary_unary(method)(request, timeout=more.pop("timeout", PATIENCE), **more)


def refused(call):
    """The error of a call that must fail."""
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("it did not fail")


def all_of(metadata, prefix):
    return sorted((k, v) for k, v in metadata if k.startswith(prefix))


def metadata():
    asked = (("x-ask", "1"), ("x-ask", "2"), ("x-ask-bin", bytes(range(256))))
    reply, call = channel.unary_unary(BYTES + "Unary").with_call(b"hello", timeout=PATIENCE, metadata=asked)
    assert reply == b"hello"
    for got, prefix in ((call.initial_metadata(), "x-early"), (call.trailing_metadata(), "x-late")):
        want = sorted((k.replace("x-ask", prefix), v) for k, v in asked)
        assert all_of(got, prefix) == want, got


def client_stream():
    pieces = (b"x" * nth for nth in range(500))
    reply = channel.stream_unary(BYTES + "Collect")(pieces, timeout=PATIENCE)
    assert reply == b"500 124750", reply


def server_stream():
    got = list(channel.unary_stream(BYTES + "Spread")(b"2000", timeout=PATIENCE))
    assert got == [b"%d" % nth for nth in range(2000)]


def both_streams():
    turn = threading.Semaphore(1)

    def questions():
        for nth in range(200):
            turn.acquire()
            yield b"%d" % nth

    # Each question waits for the answer to the one before.
    count = 0
    for answer in channel.stream_stream(BYTES + "Talk")(questions(), timeout=PATIENCE):
        assert answer == b"%d" % count
        count += 1
        turn.release()
    assert count == 200


def ended(name):
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if name in unary(BYTES + "Gone", b"").split(b","):
            return
    raise AssertionError(f"the server did not see the end of {name}")


def deadline():
    began = time.monotonic()
    error = refused(lambda: unary(BYTES + "Slow", b"", timeout=0.3))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    assert time.monotonic() - began < 5
    ended(b"slow")


def cancellation():
    call = channel.unary_stream(BYTES + "Endless")(b"", timeout=PATIENCE)
    for _ in range(3):
        assert next(call) == b"more"
    call.cancel()
    error = refused(lambda: list(call))
    assert error.code() == grpc.StatusCode.CANCELLED, error
    ended(b"endless")


def large():
    message = bytes(range(256)) * (4 << 12)
    assert len(message) == 4 << 20
    assert unary(BYTES + "Unary", message) == message


def large_streams():
    piece = bytes(1 << 20)
    got = channel.stream_stream(BYTES + "Talk")(iter([piece] * 16), timeout=PATIENCE)
    assert [len(answer) for answer in got] == [1 << 20] * 16


def details():
    error = refused(lambda: unary(BYTES + "Fail", b""))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    assert error.details() == "wei\u00df nicht, 100 %", error.details()
    assert ("grpc-status-details-bin", bytes(range(256))) in error.trailing_metadata()


def broken_stream():
    call = channel.unary_stream(BYTES + "Half")(b"", timeout=PATIENCE)
    assert next(call) == b"one"
    error = refused(lambda: list(call))
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "in the middle"), error


def health():
    assert unary("/grpc.health.v1.Health/Check", b"") == b"\x08\x01"


def unknown_method():
    error = refused(lambda: unary(BYTES + "Nothing", b""))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error


def no_route():
    error = refused(lambda: unary("/elsewhere.Service/Call", b""))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error


def nobody_there():
    error = refused(lambda: unary("/nobody.Service/Call", b""))
    assert error.code() == grpc.StatusCode.UNAVAILABLE, error
    assert "upstream connect error" in error.details(), error.details()


def compressed():
    message = b"again and again " * 10000
    assert unary(BYTES + "Unary", message, compression=grpc.Compression.Gzip) == message


def many():
    calls = [channel.unary_unary(BYTES + "Unary").future(b"%d" % nth, timeout=PATIENCE) for nth in range(500)]
    assert [call.result() for call in calls] == [b"%d" % nth for nth in range(500)]


def main():
    failed = 0
    checks = [metadata, client_stream, server_stream, both_streams, deadline, cancellation, large, large_streams]
    checks += [details, broken_stream, health, unknown_method, no_route, nobody_there, compressed, many]
    for check in checks:
        try:
            check()
            print("ok", check.__name__, flush=True)
        except Exception:
            failed = 1
            print("FAILED", check.__name__, traceback.format_exc(), flush=True)
    sys.exit(failed)


main()
