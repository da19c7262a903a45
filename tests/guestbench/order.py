"""In which order the daemons take their turns."""

from tests.guestbench.paired import LEAST_ROUNDS


def orders(count: int) -> list[list[int]]:
    """Orders of so many, one after the other: over all of them each number stands in each place equally often, and has
    each other one right before it equally often (E. J. Williams, 1949). An odd count takes twice as many orders."""
    first = [0]
    for step in range(1, count):
        first.append((step + 1) // 2 if step % 2 else count - step // 2)
    found = [[(each + shift) % count for each in first] for shift in range(count)]
    return found + [list(reversed(order)) for order in found] if count % 2 and count > 1 else found


def rounds_for(count: int) -> int:
    """The fewest rounds that go through all orders of so many daemons, and give an interval."""
    whole = len(orders(count))
    return whole * -(-LEAST_ROUNDS // whole)
