"""``python -m tests.chaos``: random faults for some minutes; the seed that is printed brings them again."""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import time

from ranvier.cluster.members import BEAT_S, LEASE_S
from tests.chaos.storm import storm


async def _main(minutes: float, seed: int) -> None:
    print(f"seed {seed} (python -m tests.chaos --seed {seed} does the same faults again)", flush=True)
    chance = random.Random(seed)
    until = time.monotonic() + minutes * 60
    async with storm(seed, pause_s=10.0, watch_s=LEASE_S + BEAT_S) as made:
        while time.monotonic() < until:
            await made.strike(chance.choice(list(made.all)))
    print("Nothing was lost, told twice or told in another order.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    arguments = parser.parse_args()
    asyncio.run(_main(arguments.minutes, arguments.seed))
