"""A chat endpoint on loopback that misbehaves on purpose."""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[dict], str]
Fault = Callable[[dict, int], str]  # of a body and how often it was asked before: the name of a fault, or ""


class Endpoint:
    """Answers by `answer`; `fault` decides what goes wrong. `asked` counts requests by their last message."""

    def __init__(self, answer: Answer, fault: Fault = lambda body, times: "", late: float = 1.0):
        self.answer, self.fault, self.late = answer, fault, late
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.times: list[float] = []
        self.most_at_once = self.at_once = 0
        self.lock = threading.Lock()
        self.port = 0
        self.start()

    def start(self) -> None:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    endpoint.handle(self)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

        self.server = Server(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def die(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        data = handler.rfile.read(int(handler.headers["Content-Length"]))
        if not data.endswith(b"}"):
            return  # the one who asks has been killed
        body = json.loads(data)
        text = body["messages"][-1]["content"]
        with self.lock:
            times = self.asked[text]
            self.asked[text] += 1
            self.times.append(time.monotonic())
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.respond(handler, body, text, self.fault(body, times))
        finally:
            with self.lock:
                self.at_once -= 1

    def respond(self, handler: BaseHTTPRequestHandler, body: dict, text: str, fault: str) -> None:
        if fault == "late":
            time.sleep(self.late)
        if fault in ("429", "500", "503", "400", "401"):
            handler.send_response(int(fault))
            handler.send_header("Retry-After", "0.05")
            data = json.dumps({"error": {"message": f"as\nasked: {fault}"}}).encode()
        else:
            handler.send_response(200)
            answer = self.answer(body)
            reason = "length" if fault == "short" else "stop"
            message = {"role": "assistant", "content": answer[:5] if fault == "short" else answer}
            choices = [] if fault == "empty" else [{"message": message, "finish_reason": reason}]
            usage = {"prompt_tokens": 10, "completion_tokens": 5}
            data = json.dumps({"choices": choices, "usage": usage}).encode()
            data = b"<html>busy</html>" if fault == "html" else data
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if fault == "cut":
            handler.wfile.write(data[: len(data) // 2])
            handler.wfile.flush()
            handler.connection.close()
            return
        handler.wfile.write(data)
        if not fault or fault == "late":
            with self.lock:
                self.answered[text] += 1


@contextlib.contextmanager
def serve(answer: Answer, fault: Fault = lambda body, times: "", late: float = 1.0) -> Iterator[Endpoint]:
    endpoint = Endpoint(answer, fault, late)
    try:
        yield endpoint
    finally:
        endpoint.die()
