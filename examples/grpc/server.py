#!/usr/bin/env python3
"""The Greeter of gRPC's own examples: helloworld.Greeter/SayHello. Needs grpcio, and no generated code.

    server.py [port]      default 50051, on loopback
"""
import sys
from concurrent import futures

import grpc


def text_field(message):
    """Field 1 of a protobuf message that has nothing else, a string of at most 127 bytes."""
    if not message:
        return ""
    if message[0] != 0x0A or len(message) != 2 + message[1]:
        raise ValueError("not a HelloRequest")
    return message[2:].decode()


def say_hello(request, context):
    text = f"Hello, {text_field(request)}!".encode()[:127]
    return bytes([0x0A, len(text)]) + text


def main():
    port = sys.argv[1] if len(sys.argv) > 1 else "50051"
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    methods = {"SayHello": grpc.unary_unary_rpc_method_handler(say_hello)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("helloworld.Greeter", methods),))
    if not server.add_insecure_port(f"127.0.0.1:{port}"):
        sys.exit(f"cannot listen on port {port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
