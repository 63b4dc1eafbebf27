"""A gRPC service of bytes for the tests: service.py PORT. Its methods are named after what they do."""
import sys
import threading
import time
from concurrent import futures

import grpc

ended = []  # how calls ended that their client gave up
lock = threading.Lock()


def unary(request, context):
    asked = [(k, v) for k, v in context.invocation_metadata() if k.startswith("x-ask")]
    context.send_initial_metadata([(k.replace("x-ask", "x-early"), v) for k, v in asked])
    context.set_trailing_metadata([(k.replace("x-ask", "x-late"), v) for k, v in asked])
    return request


def collect(requests, context):
    count = size = 0
    for request in requests:
        count += 1
        size += len(request)
    return f"{count} {size}".encode()


def spread(request, context):
    for nth in range(int(request)):
        yield b"%d" % nth


def talk(requests, context):
    for request in requests:
        yield request


def note(name, context):
    def over():
        with lock:
            ended.append(name)

    context.add_callback(over)


def slow(request, context):
    note("slow", context)
    while context.is_active():
        time.sleep(0.01)
    return b"late"


def endless(request, context):
    note("endless", context)
    while context.is_active():
        yield b"more"
        time.sleep(0.002)


def gone(request, context):
    with lock:
        return b",".join(name.encode() for name in sorted(set(ended)))


def fail(request, context):
    context.set_trailing_metadata([("grpc-status-details-bin", bytes(range(256)))])
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "wei\u00df nicht, 100 %")


def half(request, context):
    yield b"one"
    context.abort(grpc.StatusCode.DATA_LOSS, "in the middle")


def healthy(request, context):
    return b"\x08\x01"  # SERVING


def main():
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64), options=options)
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Collect": grpc.stream_unary_rpc_method_handler(collect),
        "Spread": grpc.unary_stream_rpc_method_handler(spread),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
        "Slow": grpc.unary_unary_rpc_method_handler(slow),
        "Endless": grpc.unary_stream_rpc_method_handler(endless),
        "Gone": grpc.unary_unary_rpc_method_handler(gone),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Half": grpc.unary_stream_rpc_method_handler(half),
    }
    health = {"Check": grpc.unary_unary_rpc_method_handler(healthy)}
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("test.Bytes", handlers),
            grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),
        )
    )
    if not server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}"):
        sys.exit("cannot listen")
    server.start()
    server.wait_for_termination()


main()
