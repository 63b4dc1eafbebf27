#!/usr/bin/env python3
"""Says hello once. Needs grpcio, and no generated code.

    client.py [name] [address]      default: world 127.0.0.1:10000, where the sidecar listens
"""
import sys

import grpc


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "world"
    address = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:10000"
    text = name.encode()[:100]
    with grpc.insecure_channel(address) as channel:
        say_hello = channel.unary_unary("/helloworld.Greeter/SayHello")
        try:
            reply = say_hello(bytes([0x0A, len(text)]) + text, timeout=5)
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")
    print(reply[2:].decode())


if __name__ == "__main__":
    main()
