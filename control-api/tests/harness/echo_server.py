"""A gRPC server that answers any call with its first argument; says its port, ends with its standard input."""

import sys
from concurrent import futures

import grpc


class Anything(grpc.GenericRpcHandler):
    def service(self, _details):
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: sys.argv[1].encode())


server = grpc.server(futures.ThreadPoolExecutor(2))
server.add_generic_rpc_handlers((Anything(),))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
server.stop(None)
