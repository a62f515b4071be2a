"""A stand-in for the Hugging Face hub on this machine: the few real answers that downloading one revision needs."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from labcode.models.known import KNOWN

GPT2 = KNOWN["gpt2"]


class Hub(ThreadingHTTPServer):
    """The server, running from its making to `shutdown`.

    `files` are handed out whole; one in `breaks` is cut after half its bytes. `asked` lists the paths.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], breaks: tuple[str, ...] = (), status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.breaks, self.status, self.asked = files, breaks, status, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def blob_id(content: bytes) -> str:
    """What git calls a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        others = {"pytorch_model.bin": b"pickle", "model.onnx": b"onnx"}
        if "/tree/" in self.path:
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": blob_id(content)}
                for name, content in {**self.server.files, **others}.items()
            ]
            self.reply(json.dumps(tree).encode())
            return
        name = self.path.split("?")[0].rpartition("/")[2]
        if name not in self.server.files:
            self.send_error(404)
            return
        self.reply(self.server.files[name], cut=name in self.server.breaks)

    def reply(self, content: bytes, cut: bool = False) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{blob_id(content)}"')
        self.send_header("X-Repo-Commit", GPT2.revision)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = True
