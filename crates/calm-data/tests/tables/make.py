"""Writes the tables beside it: the same rows by other writers than ours, in the ways that they write by default and in those that
differ most. `pip install pyarrow polars duckdb`, then `python make.py`."""

from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
ROWS = 300
TEXTS = [f"text {n} " + "words é ☃ " * (n % 7) for n in range(ROWS)]
LANGUAGES = ["en", "de", None]


def columns():
    return {
        "id": list(range(ROWS)),
        "text": TEXTS,
        "language": [LANGUAGES[n % 3] for n in range(ROWS)],
        "score": [n / 100 for n in range(ROWS)],
        "good": [n % 2 == 0 for n in range(ROWS)],
        "meta": [{"source": f"s{n % 2}", "year": 2000 + n % 20} for n in range(ROWS)],
    }


table = pa.table(columns())
for compression in ["none", "snappy", "gzip", "brotli", "lz4", "zstd"]:
    some = table.select(["text"]) if compression == "none" else table
    pq.write_table(some, HERE / f"pyarrow-{compression}.parquet", compression=compression, row_group_size=130)
pq.write_table(
    table, HERE / "pyarrow-v2.parquet", compression="zstd", version="2.6", data_page_version="2.0", data_page_size=1000,
    use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY", "language": "DELTA_LENGTH_BYTE_ARRAY"},
    write_page_checksum=True, row_group_size=77,
)
pq.write_table(
    pa.table({"text": pa.array([t.encode() for t in TEXTS], pa.large_binary())}), HERE / "pyarrow-bytes.parquet", compression="zstd"
)
chats = {
    "messages": [
        [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}],
        [],
        [{"role": "assistant", "content": None}],
    ],
    "n": [1, 2, 3],
}
pq.write_table(pa.table(chats), HERE / "pyarrow-messages.parquet")
frame = polars.DataFrame(columns())
frame.write_parquet(HERE / "polars.parquet", row_group_size=100)
duckdb.sql(f"COPY (SELECT * FROM frame) TO '{HERE / 'duckdb.parquet'}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 2048)")

chat = polars.DataFrame(chats)
chat.write_parquet(HERE / "polars-messages.parquet")
duckdb.sql(f"COPY (SELECT * FROM chat) TO '{HERE / 'duckdb-messages.parquet'}' (FORMAT parquet)")
