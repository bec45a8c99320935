"""A plain vLLM server, for tests that collect from it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from specexit import tiny
from tests.ports import hold_port


class VllmServer:
    """A plain ``vllm serve`` of the tiny reasoner, as a user starts it."""

    def __init__(self, log: Path):
        self.held, self.port = hold_port()
        self.log, self.url = log, f"http://127.0.0.1:{self.port}"
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32", "--enforce-eager"]
        words += ["--max-model-len", "1024", "--max-num-seqs", "16", "--max-num-batched-tokens", "512"]
        words += ["--kv-cache-memory-bytes", str(256 << 20)]
        settings = {
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no third process, which takes as long to start as the second
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        environment = os.environ | settings
        environment.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would win
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny.MODEL_DIR), *words],
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it answers."""
        for _ in range(1800):
            assert self.process.poll() is None, f"the server has ended:\n{self.log.read_text()[-4000:]}"
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        raise AssertionError(f"the server does not answer:\n{self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        """At once, engine and all."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # a group of its own: all of its processes
            self.process.wait()
        self.held.close()
