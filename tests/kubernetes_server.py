"""Stand-in for the Kubernetes server: lists pods. As a program it serves on `ADDRESS` until it is killed.

    python kubernetes_server.py ADDRESS PODS

PODS is JSON, a list of pods from `pod`.
"""

import contextlib
import http.server
import json
import sys
import threading


def pod(name, address, phase="Running"):
    """Returns Kubernetes' description of a pod."""
    return {"metadata": {"name": name}, "status": {"phase": phase, "podIP": address, "hostIP": "192.168.0.1"}}


@contextlib.contextmanager
def serving(answers, address="127.0.0.1"):
    """Serves the lists of pods in `answers` one after the other, and then repeats the last; `None` is a refusal.

    Yields the server's URL and the list of received requests, such as `"GET /path"`.
    """
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(f"{self.command} {self.path}")
            pods = answers.pop(0) if len(answers) > 1 else answers[0]
            body = json.dumps({"kind": "PodList", "apiVersion": "v1", "items": pods}).encode()
            self.send_response(200 if pods is not None else 403)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer((address, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{address}:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def write_config(path, url):
    """Writes a kubeconfig for the server at `url`; returns the path."""
    config = {
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


if __name__ == "__main__":
    with serving([json.loads(sys.argv[2])], sys.argv[1]) as (server_url, _):
        print(server_url, flush=True)
        threading.Event().wait()
