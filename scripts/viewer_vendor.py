"""Renew the libraries that the web application ships: ``python scripts/viewer_vendor.py``.

Packs the pinned versions with npm, which checks the registry's checksums, and copies the built
files with their licences to agent_r1/viewer/assets/vendor. To renew one, change its version.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).resolve().parents[1] / "agent_r1" / "viewer" / "assets" / "vendor"

# package, version -> {file in the package: file in vendor/}
PACKAGES = {
    ("uplot", "1.6.32"): {
        "dist/uPlot.esm.js": "uplot.js",
        "dist/uPlot.min.css": "uplot.css",
        "LICENSE": "uplot.LICENSE",
    },
    # Preact, its hooks and htm as one module.
    ("htm", "3.1.1"): {"preact/standalone.module.js": "preact.js", "LICENSE": "htm.LICENSE"},
    ("preact", "10.11.3"): {"LICENSE": "preact.LICENSE"},  # htm's module bundles its code
    ("@highlightjs/cdn-assets", "11.12.0"): {
        "es/core.min.js": "highlight.js",
        "es/languages/python.min.js": "highlight-python.js",
        "es/languages/json.min.js": "highlight-json.js",
        "LICENSE": "highlight.LICENSE",
    },
}


def main() -> None:
    shutil.rmtree(VENDOR, ignore_errors=True)
    VENDOR.mkdir(parents=True)
    for (name, version), wanted in PACKAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                ["npm", "pack", "--json", f"{name}@{version}"],
                cwd=folder,
                check=True,
                capture_output=True,
                text=True,
            )
            packed = json.loads(done.stdout)
            file = next(iter(packed.values() if isinstance(packed, dict) else packed))["filename"]
            with tarfile.open(Path(folder) / file) as archive:
                for source, target in wanted.items():
                    content = archive.extractfile(f"package/{source}")
                    if content is None:
                        raise SystemExit(f"{name} {version} has no file {source}")
                    (VENDOR / target).write_bytes(content.read())
    versions = dict(PACKAGES)
    (VENDOR / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
