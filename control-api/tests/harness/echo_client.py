"""A gRPC client that calls its first argument for each line it reads, and says what the answer was."""

import sys

import grpc

with grpc.insecure_channel(sys.argv[1]) as channel:
    call = channel.unary_unary("/test.Echo/Say")
    for _line in sys.stdin:
        try:
            print(call(b"", timeout=20).decode(), flush=True)
        except grpc.RpcError as error:
            print("error:", error.code(), error.details(), flush=True)
