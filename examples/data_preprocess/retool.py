"""Prepare DAPO-Math-17k for ReTool: ``python retool.py --local_dir ./data/retool``.

The same as ``agent-r1 data prepare retool --local-dir ./data/retool``.
"""

from _script import run

if __name__ == "__main__":
    run("retool", "Prepare DAPO-Math-17k for training with the retool environment.", 500)
