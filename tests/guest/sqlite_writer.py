"""Adds to a counter in an SQLite database, a transaction each, until every one of the writers has done so COUNT times:
so all of them write at the same time for as long as the slowest of them takes. Prints how often the others were in the
way. Runs in guests and on the host, with the standard library only.

    python3 sqlite_writer.py DATABASE NAME COUNT WRITERS
"""

import sqlite3
import sys
import time

#: Seconds between two transactions, and between two tries to begin one: lets the others in.
PAUSE = 0.005


def begin(database: sqlite3.Connection) -> int:
    """Takes the lock for writing; returns how often another writer had it."""
    database.execute("PRAGMA busy_timeout = 0")
    busy = 0
    while True:
        try:
            database.execute("BEGIN IMMEDIATE")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
        busy += 1
        time.sleep(PAUSE)
    database.execute("PRAGMA busy_timeout = 120000")
    return busy


def main() -> None:
    path, name, count, writers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    database = sqlite3.connect(path, isolation_level=None)
    busy, everyone = 0, [0]
    while min(everyone) < count or len(everyone) < writers:
        time.sleep(PAUSE)
        busy += begin(database)
        (before,) = database.execute("SELECT n FROM counter").fetchone()
        database.execute("UPDATE counter SET n = ?", (before + 1,))
        database.execute("INSERT INTO log VALUES (?, ?, ?)", (before + 1, name, name * 50))
        everyone = [n for (n,) in database.execute("SELECT count(*) FROM log GROUP BY who")]
        database.execute("COMMIT")
    print(busy)


if __name__ == "__main__":
    main()
