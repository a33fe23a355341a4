"""What the tests of tasks on data sets share: a tokenizer of bytes, and files written in the published schemas."""

from __future__ import annotations

import csv
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest


class ByteTokenizer:
    """Every text has ids; messages are joined. Stands in for a model's tokenizer."""

    vocab_size, pad_id, bos_id, eos_id, stop_ids = 259, 0, 1, 2, (2,)

    def encode(self, text):
        return [byte + 3 for byte in text.encode()]

    def encode_prompt(self, prompt):
        return self.encode(prompt if isinstance(prompt, str) else "".join(m["content"] for m in prompt))

    def decode(self, ids):
        ids = list(ids)
        ids = ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids
        return bytes(i - 3 for i in ids if i > 2).decode()


@pytest.fixture
def tokenizer():
    return ByteTokenizer()


@pytest.fixture
def write(tmp_path):
    """write('x.jsonl', rows) → path; the suffix says how."""

    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        if name.endswith(".jsonl"):
            path.write_text(lines)
        elif name.endswith(".jsonl.gz"):
            path.write_bytes(gzip.compress(lines.encode()))
        elif name.endswith(".json"):
            path.write_text(json.dumps(rows))
        elif name.endswith(".csv"):
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        else:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return str(path)

    return write
