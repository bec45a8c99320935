"""A storage server in memory, with three buckets: ``open``; ``locked``, which everybody may read and nobody write; and
``sealed``, which nobody may read.

Prints its port and serves until its standard input is closed. A process of its own: some clients wait for its answers
without letting go of Python.
"""

import logging
import sys
from http import HTTPStatus
from http.server import HTTPServer

from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import buckets, objects
from gcp_storage_emulator.storage import Storage

REFUSED = '{"error": {"code": 403, "message": "does not have storage.objects.%s access to the bucket %s"}}'


def main() -> None:
    handle, download = server.Router.handle, objects.download

    def guarded(self: server.Router, method: str) -> None:
        request = self._request_handler
        if "/b/sealed" in request.path:
            refused = REFUSED % ("get", "sealed")
        elif "/b/locked" in request.path and method != "GET":
            refused = REFUSED % ("create", "locked")
        else:
            handle(self, method)
            return
        request.rfile.read(int(request.headers.get("content-length") or 0))
        request.send_response(403)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(refused)))
        request.end_headers()
        request.wfile.write(refused.encode())

    def with_generation(request: server.Request, response: server.Response, storage: Storage) -> None:
        """As Google's: TensorStore makes its next write depend on what it has read."""
        download(request, response, storage)
        if response.status != HTTPStatus.NOT_FOUND:
            found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
            response["x-goog-generation"] = found["generation"]

    server.Router.handle, objects.download = guarded, with_generation
    HTTPServer.request_queue_size = 128  # of connections not yet accepted; 5 are fewer than come at once
    logging.disable()
    started = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket="open")
    for name in ("locked", "sealed"):
        buckets.create_bucket(name, started._storage)
    started.start()
    assert started._api._httpd is not None
    print(started._api._httpd.server_port, flush=True)
    sys.stdin.read()
    started.stop()


if __name__ == "__main__":
    main()
