"""What these tests ask of the server that they are given."""

from typing import Protocol


class Homeserver(Protocol):
    """A running server with open registration (`m.login.dummy`) and no rate limits, on loopback."""

    @property
    def url(self) -> str:
        """Base URL of the client-server API, without a slash at the end."""

    @property
    def server_name(self) -> str:
        """Part of user IDs after the colon."""

    async def restart(self) -> None:
        """Stop the server if it runs, start it on the same URL and data, return when it answers."""

    def kill(self) -> None:
        """End every process of the server at once, as `kill -9` does; `restart()` brings it back."""
