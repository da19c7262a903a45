"""Adds to a counter in an SQLite database, a transaction each, and prints how long that took. Runs in guests and on the
host, with the standard library only.

    python3 sqlite_writer.py DATABASE NAME COUNT
"""

import sqlite3
import sys
import time


def main() -> None:
    path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    database = sqlite3.connect(path, timeout=120, isolation_level=None)
    begun = time.monotonic()
    for number in range(count):
        database.execute("BEGIN IMMEDIATE")
        (before,) = database.execute("SELECT n FROM counter").fetchone()
        database.execute("UPDATE counter SET n = ?", (before + 1,))
        database.execute("INSERT INTO log VALUES (?, ?, ?, ?)", (before + 1, name, number, name * 50))
        database.execute("COMMIT")
    print(f"{count} transactions in {time.monotonic() - begun:.1f} s")


if __name__ == "__main__":
    main()
