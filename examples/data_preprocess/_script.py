"""What the scripts of this folder share: the options of verl's scripts, for one collection."""

from __future__ import annotations

import argparse
import sys

from agent_r1.cli import main


def run(collection: str, description: str, val_size: int) -> None:
    """``agent-r1 data prepare COLLECTION`` with ``--local_dir`` and friends."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--local_dir", required=True, help="folder for the files")
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="[SPLIT=]FILE",
        help="read this file instead of downloading; repeatable",
    )
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="evaluation set that training must not overlap; repeatable",
    )
    parser.add_argument("--val_size", type=int, default=val_size, help="problems held out")
    parser.add_argument("--seed", type=int, default=0, help="seed of the validation split")
    parser.add_argument("--prompt", default="retool", help="retool, plain, bare, or a text file")
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    given = parser.parse_args()
    sys.argv = [
        *("agent-r1", "data", "prepare", collection),
        *("--local-dir", given.local_dir, "--prompt", given.prompt),
        *("--val-size", str(given.val_size), "--seed", str(given.seed)),
        *(part for file in given.source for part in ("--source", file)),
        *(part for file in given.against for part in ("--against", file)),
        *(["--force"] if given.force else []),
    ]
    main()
