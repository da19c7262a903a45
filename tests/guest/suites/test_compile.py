"""A compile: make and gcc build a program of several files; host and guest run it."""

import os
import subprocess

from .conftest import Place

UNITS = 12

MAKEFILE = """
OBJECTS = $(patsubst %.c,%.o,$(wildcard *.c))
CFLAGS = -O1 -g -Wall
program: libparts.a main.o
	$(CC) -o $@ main.o -L. -lparts
libparts.a: $(filter-out main.o,$(OBJECTS))
	ar rcs $@ $^
%.o: %.c parts.h
	$(CC) $(CFLAGS) -c -o $@ $<
"""


def test_compile(place: Place, scale: int) -> None:
    units = UNITS * scale
    (place.host / "Makefile").write_text(MAKEFILE)
    (place.host / "parts.h").write_text("#pragma once\n" + "".join(f"int part{n}(int);\n" for n in range(units)))
    for n in range(units):
        body = f'return x * {n} + (int)strlen("{"x" * n}");'
        unit = f'#include "parts.h"\n#include <string.h>\nint part{n}(int x) {{ {body} }}\n'
        (place.host / f"part{n}.c").write_text(unit)
    calls = " + ".join(f"part{n}(3)" for n in range(units))
    (place.host / "main.c").write_text(
        f'#include <stdio.h>\n#include "parts.h"\nint main(void) {{ printf("%d\\n", {calls}); return 0; }}\n'
    )
    # A guest's clock starts at a full second, so it may be behind the host's.
    for path in place.host.iterdir():
        os.utime(path, (1_600_000_000, 1_600_000_000))
    expected = f"{sum(4 * n for n in range(units))}"
    assert place.run("make -s && ./program").text == expected
    assert subprocess.check_output([place.host / "program"], text=True) == expected + "\n"
    # make trusts modification times: nothing is left to do, and a touched header means everything.
    assert "up to date" in place.run("make").text
    place.run("touch parts.h; make -s; test main.o -nt parts.h")
