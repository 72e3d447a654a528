"""Workers that know of each other: who is alive, who is asked for what, and how one asks another."""
