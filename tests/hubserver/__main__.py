"""Run the server by hand: python -m tests.hubserver --root DIR [--port N]."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.hubserver.server import TOKEN, HubServer, Settings


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="A Hub on 127.0.0.1, empty at the start.")
    parser.add_argument("--root", type=Path, required=True, help="folder for what is uploaded")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--lfs-threshold", type=int, default=Settings().lfs_threshold)
    parser.add_argument("--part-size", type=int, help="upload larger files in parts")
    parser.add_argument("--cdn", action="store_true", help="redirect downloads to another host")
    asked = parser.parse_args()
    settings = Settings(lfs_threshold=asked.lfs_threshold, part_size=asked.part_size, cdn=asked.cdn)
    server = HubServer(asked.root, settings, port=asked.port)
    print(f"export HF_ENDPOINT={server.url} HF_TOKEN={TOKEN} HF_HUB_DISABLE_XET=1", flush=True)
    server.start()
    try:
        server.stopping.wait()
    except KeyboardInterrupt:
        server.stop()


if __name__ == "__main__":
    main()
