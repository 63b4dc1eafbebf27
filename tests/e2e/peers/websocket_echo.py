"""A WebSocket echo server on the standard library: real handshake, unmasked echoes, pongs, close frames.

Usage: websocket_echo.py PORT. The message "bye" makes the server start the closing handshake, "drop" makes it close the
TCP connection without one.
"""
import base64
import hashlib
import socketserver
import struct
import sys

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        headers = {}
        request = self.rfile.readline().decode("latin-1")
        while True:
            line = self.rfile.readline().decode("latin-1").rstrip("\r\n")
            if not line:
                break
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        if not request:
            return
        if headers.get("upgrade", "").lower() != "websocket" or "upgrade" not in headers.get("connection", "").lower():
            self.wfile.write(b"HTTP/1.1 426 Upgrade Required\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return
        key = hashlib.sha1((headers["sec-websocket-key"] + GUID).encode()).digest()
        self.wfile.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(key) + b"\r\n\r\n"
        )
        while self.frame():
            pass

    def frame(self):
        head = self.rfile.read(2)
        if len(head) < 2:
            return False
        kind, size = head[0] & 0x0F, head[1] & 0x7F
        if size == 126:
            (size,) = struct.unpack(">H", self.rfile.read(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self.rfile.read(8))
        mask = self.rfile.read(4) if head[1] & 0x80 else b"\0\0\0\0"
        data = self.rfile.read(size)
        pad = (mask * (size // 4 + 1))[:size]
        data = (int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")
        if kind == 8:
            self.send(8, data)
            return False
        if kind == 9:
            self.send(10, data)
        elif kind in (1, 2):
            if data == b"drop":
                return False
            if data == b"bye":
                self.send(8, struct.pack(">H", 1000))
                return True
            self.send(kind, data)
        return True

    def send(self, kind, data):
        if len(data) < 126:
            head = struct.pack(">BB", 0x80 | kind, len(data))
        elif len(data) < 65536:
            head = struct.pack(">BBH", 0x80 | kind, 126, len(data))
        else:
            head = struct.pack(">BBQ", 0x80 | kind, 127, len(data))
        self.wfile.write(head + data)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


with Server(("127.0.0.1", int(sys.argv[1])), Echo) as server:
    server.serve_forever()
