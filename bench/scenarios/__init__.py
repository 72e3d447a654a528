"""The scenarios in the order in which they run."""

from bench.scenarios import accounts, fanout, reads, rooms, send
from bench.scenarios.base import Scenario

SCENARIOS = [
    Scenario("register", "register (cheap password hash)", accounts.register, builds_world=True),
    Scenario("create_room", "create room", rooms.create_room, builds_world=True),
    Scenario("join", "join", rooms.join, builds_world=True),
    Scenario("send_serial", "send, serially", send.send_serial),
    Scenario("send_many_rooms", "send, 16 clients, many rooms", send.send_many_rooms),
    Scenario("send_one_room", "send, 16 clients, one room of 50", send.send_one_room),
    Scenario("fanout", "delivery to 50 long-polling listeners, 5 messages/s", fanout.fanout),
    Scenario("initial_sync", "initial sync", reads.initial_sync),
    Scenario("messages", "/messages?limit=50", reads.messages),
    Scenario("state", "room state, 5 members", reads.state_of_small_room),
    Scenario("state_big", "room state, 50 members", reads.state_of_big_room),
    Scenario("whoami", "whoami", reads.whoami),
    Scenario("send_many_clients", "send, 48 clients, many rooms", send.send_many_clients),
]
# Of servers that are compared by turns.
SEND_ATTENDED = Scenario(
    "send_attended", "send, 16 clients, many rooms, one client waits at each worker", send.send_attended
)
# Measured on a second start of the server, with its default price of a password.
REGISTER_DEFAULT_HASH = Scenario(
    "register_default_hash", "register (default password hash)", accounts.register_with_default_hash
)
