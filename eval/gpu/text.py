"""Writes a part of the default corpus as train.jsonl and validation.jsonl: python3 text.py datasets/crates.yaml OUT.

For a machine without cargo's registry, where `data.source: {crates: …}` finds nothing. Documents are the .rs and .md
files of the pinned crates without those that the manifest drops, crates in the manifest's order; of the training crates
every third, which is enough for a minute of training.
"""

import json
import re
import subprocess
import sys
from pathlib import Path


def crates(manifest):
    """(name, version, split, dropped files) of the manifest; its layout is fixed, so no YAML reader is needed."""
    for block in re.split(r"^- name: ", manifest, flags=re.M)[1:]:
        field = lambda key: re.search(rf"^  {key}: (\S+)", block, re.M)[1]
        dropped = set(re.findall(r"^    - (.+)$", block, re.M))
        yield block.split("\n", 1)[0].strip(), field("version"), field("split"), dropped


def run(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main():
    manifest, out = Path(sys.argv[1]), Path(sys.argv[2])
    # The crates of other platforms need not be there.
    host = re.search(r"^host: (\S+)", run("rustc", "-vV"), re.M)[1]
    about = json.loads(run("cargo", "metadata", "--format-version", "1", "--offline", "--filter-platform", host))
    folders = {(p["name"], p["version"]): Path(p["manifest_path"]).parent for p in about["packages"]}
    out.mkdir(parents=True, exist_ok=True)
    documents, seen = dict(train=[], validation=[]), 0
    for name, version, split, dropped in crates(manifest.read_text()):
        seen += split == "train"
        folder = folders.get((name, version))
        if folder is None or (split == "train" and seen % 3):
            continue
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".rs", ".md") and p.is_file()):
            if str(path.relative_to(folder)) not in dropped:
                documents[split].append(path.read_text(errors="replace"))
    for split, texts in documents.items():
        if not texts:
            sys.exit(f"error: no text for {split}: run `cargo fetch` first")
        with (out / f"{split}.jsonl").open("w") as file:
            file.writelines(json.dumps(dict(text=text), ensure_ascii=False) + "\n" for text in texts)
        print(f"{split}: {len(texts)} documents, {sum(map(len, texts)) / 1e6:.1f} M characters")


if __name__ == "__main__":
    main()
