"""Prepare GSM8K: ``python gsm8k.py --local_dir ./data/gsm8k``.

The same as ``agent-r1 data prepare gsm8k --local-dir ./data/gsm8k``.
"""

from _script import run

if __name__ == "__main__":
    run("gsm8k", "Prepare GSM8K for training with the retool environment.", 500)
