"""SQLite in WAL mode: its shared-memory file is mapped, its log is appended to, several processes read and write."""

import sqlite3

from .conftest import Place

ROWS = 2000

WRITER = """
import sqlite3, sys
base, rows = int(sys.argv[1]), int(sys.argv[2])
db = sqlite3.connect("data.db", timeout=120, isolation_level=None)
assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
for start in range(base, base + rows, 20):
    db.execute("BEGIN IMMEDIATE")
    for index in range(start, start + 20):
        db.execute("INSERT INTO t VALUES (?, ?)", (index, f"{index:08}" * 40))
    db.execute("COMMIT")
    count, least = db.execute("SELECT count(*), min(length(text)) FROM t").fetchone()
    assert count >= start - base + 20 and least == 320
db.close()
"""


def test_sqlite_wal(place: Place, scale: int) -> None:
    (place.host / "writer.py").write_text(WRITER)
    rows = ROWS * scale
    # The change to WAL wants the database alone and waits for nobody, so it comes before the writers.
    place.run("sqlite3 data.db 'PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)'")
    place.run(
        f"/usr/bin/python3 writer.py 0 {rows} & first=$!; /usr/bin/python3 writer.py 1000000 {rows} && wait $first &&"
        " sqlite3 data.db 'PRAGMA integrity_check' >check"
    )
    assert (place.host / "check").read_text() == "ok\n"
    database = sqlite3.connect(place.host / "data.db")
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert database.execute("SELECT count(*), max(id) FROM t").fetchone() == (2 * rows, 1000000 + rows - 1)
    database.close()
