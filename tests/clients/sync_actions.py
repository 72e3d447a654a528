"""Random but repeatable lives of a few users: all that can change what a /sync says."""

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from tests.clients.http_session import HttpSession, path_of

Json = dict[str, Any]
Action = Callable[[], Awaitable[bool]]
MAX_ROOMS = 5
ENCRYPTION = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}


class Lives:
    """The users, the rooms, and one random act after another."""

    def __init__(self, users: list[HttpSession], observers: list[HttpSession], seed: int) -> None:
        self._random = Random(seed)
        self._users = users
        self._observers = observers
        self._count = 0
        self.rooms: list[str] = []
        self.encrypted: set[str] = set()
        self.membership: dict[tuple[str, str], str] = {}
        self.events: dict[str, list[tuple[str, str]]] = {}
        self.forgotten: dict[str, set[str]] = {user.user_id: set() for user in users}
        # per device, in the order of sending
        self.sent_to_device: dict[str, list[int]] = {device.device_id: [] for device in observers}
        self.changed_devices: set[str] = set()
        self.tried = 0
        self.done = 0
        self.log: list[str] = []
        self._who_where = ""

    def _actions(self) -> list[tuple[int, Action]]:
        return [
            (2, self.create_room), (5, self.join), (2, self.leave), (5, self.invite), (2, self.kick),
            (1, self.ban), (1, self.unban), (2, self.knock), (1, self.forget), (14, self.message),
            (4, self.thread_reply), (3, self.edit), (3, self.react), (4, self.redact), (6, self.state),
            (1, self.rules), (8, self.receipt), (2, self.read_marker), (3, self.room_account_data),
            (3, self.account_data), (3, self.tag), (2, self.untag), (4, self.to_device),
            (2, self.change_device), (2, self.push_rule), (2, self.profile),
        ]  # fmt: skip

    async def live(self, count: int) -> None:
        """Do `count` random things; those that the rules of the room forbid count too."""
        weights, actions = zip(*self._actions(), strict=True)
        for _ in range(count):
            (action,) = self._random.choices(actions, weights) if self.rooms else [self.create_room]
            done = await action()
            self.tried += 1
            self.done += done
            refused = "" if done else " (refused)"
            self.log.append(f"{action.__name__}{self._who_where}{refused}")
            self._who_where = ""

    # ---- choosing ----

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _user(self) -> HttpSession:
        return self._random.choice(self._users)

    def _pair(self, *memberships: str) -> tuple[HttpSession, str]:
        """Choose a user and a room, if possible such that the user has one of these memberships there."""
        pairs = [(user, room) for user in self._users for room in self.rooms]
        good = [
            (user, room)
            for user, room in pairs
            if self.membership.get((room, user.user_id), "leave") in memberships
        ]
        user, room_id = self._random.choice(good or pairs)
        self._who_where = f" by {user.user_id} in room {self.rooms.index(room_id)}"
        return user, room_id

    def _event(self, room_id: str, recent: int = 8) -> str | None:
        events = self.events.get(room_id, [])[-recent:]
        return self._random.choice(events)[0] if events else None

    # ---- rooms and members ----

    async def create_room(self) -> bool:
        """Create a room of a random kind."""
        if len(self.rooms) >= MAX_ROOMS:
            return False
        user = self._user()
        encrypted = not self.rooms or self._random.random() < 0.3
        state: list[Json] = [ENCRYPTION] if encrypted else []
        if self._random.random() < 0.3:
            state.append({"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}})
        preset = "public_chat" if not self.rooms else self._random.choice(["public_chat", "private_chat"])
        body: Json = {"preset": preset, "initial_state": state}
        if self._random.random() < 0.4:
            body["name"] = f"room {self._next()}"
        if self._random.random() < 0.5:
            body["invite"] = [u.user_id for u in self._random.sample(self._users, 2) if u is not user]
        answer = await user.ok("POST", "/createRoom", body)
        room_id = answer["room_id"]
        self.rooms.append(room_id)
        if encrypted:
            self.encrypted.add(room_id)
        self.membership[room_id, user.user_id] = "join"
        for invited in body.get("invite", []):
            self.membership[room_id, invited] = "invite"
        return True

    async def _change(self, user: HttpSession, room_id: str, act: str, whom: str, becomes: str) -> bool:
        body = {} if whom == user.user_id else {"user_id": whom}
        self._who_where = f" of {whom} by {user.user_id} in room {self.rooms.index(room_id)}"
        status, _ = await user.call("POST", path_of("rooms", room_id, act), body)
        if status == 200:
            self.membership[room_id, whom] = becomes
        return status == 200

    async def join(self) -> bool:
        """Join, mostly where invited."""
        user, room_id = self._pair("invite", "leave")
        done = await self._change(user, room_id, "join", user.user_id, "join")
        if done:
            self.forgotten[user.user_id].discard(room_id)
        return done

    async def leave(self) -> bool:
        """Leave a room, reject an invite or take back a knock."""
        user, room_id = self._pair("join", "invite", "knock")
        return await self._change(user, room_id, "leave", user.user_id, "leave")

    async def invite(self) -> bool:
        """Invite somebody who is not there."""
        user, room_id = self._pair("join")
        absent = [u for u in self._users if self.membership.get((room_id, u.user_id), "leave") != "join"]
        whom = self._random.choice(absent or self._users).user_id
        done = await self._change(user, room_id, "invite", whom, "invite")
        if done:
            self.forgotten[whom].discard(room_id)
        return done

    async def kick(self) -> bool:
        """Kick a random user."""
        user, room_id = self._pair("join")
        whom = self._user().user_id
        before = self.membership.get((room_id, whom))
        if whom == user.user_id or before in (None, "leave", "ban"):
            return False
        return await self._change(user, room_id, "kick", whom, "leave")

    async def ban(self) -> bool:
        """Ban a random user."""
        user, room_id = self._pair("join")
        whom = self._user().user_id
        if whom == user.user_id:
            return False
        return await self._change(user, room_id, "ban", whom, "ban")

    async def unban(self) -> bool:
        """Lift a ban."""
        banned = [(room, user) for (room, user), what in self.membership.items() if what == "ban"]
        if not banned:
            return False
        room_id, whom = self._random.choice(banned)
        members = [u for u in self._users if self.membership.get((room_id, u.user_id)) == "join"]
        if not members:
            return False
        return await self._change(self._random.choice(members), room_id, "unban", whom, "leave")

    async def knock(self) -> bool:
        """Knock on a room."""
        user, room_id = self._pair("leave")
        status, _ = await user.call("POST", path_of("knock", room_id))
        if status == 200:
            self.membership[room_id, user.user_id] = "knock"
            self.forgotten[user.user_id].discard(room_id)
        return status == 200

    async def forget(self) -> bool:
        """Forget a room that was left."""
        user, room_id = self._pair("leave")
        status, _ = await user.call("POST", path_of("rooms", room_id, "forget"))
        if status == 200:
            self.forgotten[user.user_id].add(room_id)
        return status == 200

    # ---- events ----

    async def _send(self, type_: str, content: Json) -> bool:
        user, room_id = self._pair("join")
        return await self._send_to(user, room_id, type_, content)

    async def _send_to(self, user: HttpSession, room_id: str, type_: str, content: Json) -> bool:
        path = path_of("rooms", room_id, "send", type_, user.txn())
        status, answer = await user.call("PUT", path, content)
        if status == 200:
            self.events.setdefault(room_id, []).append((answer["event_id"], user.user_id))
        return status == 200

    def _text(self) -> Json:
        content: Json = {"msgtype": "m.text", "body": f"message {self._next()}"}
        if self._random.random() < 0.3:
            content["m.mentions"] = {"user_ids": [self._user().user_id]}
        return content

    async def message(self) -> bool:
        """Send one message or, sometimes, enough of them to overflow a timeline."""
        user, room_id = self._pair("join")
        count = 12 if self._random.random() < 0.08 else 1
        sent = [await self._send_to(user, room_id, "m.room.message", self._text()) for _ in range(count)]
        return all(sent)

    async def _related(self, type_: str, relation: Json, content: Json) -> bool:
        user, room_id = self._pair("join")
        event_id = self._event(room_id)
        if event_id is None:
            return False
        related = {**content, "m.relates_to": {**relation, "event_id": event_id}}
        return await self._send_to(user, room_id, type_, related)

    async def thread_reply(self) -> bool:
        """Reply in a thread."""
        return await self._related("m.room.message", {"rel_type": "m.thread"}, self._text())

    async def edit(self) -> bool:
        """Replace a message."""
        new = {"msgtype": "m.text", "body": f"edit {self._next()}"}
        content = {**new, "m.new_content": new}
        return await self._related("m.room.message", {"rel_type": "m.replace"}, content)

    async def react(self) -> bool:
        """Annotate a message."""
        return await self._related("m.reaction", {"rel_type": "m.annotation", "key": f"k{self._next()}"}, {})

    async def redact(self) -> bool:
        """Take a message back."""
        user, room_id = self._pair("join")
        own = [event for event, sender in self.events.get(room_id, [])[-10:] if sender == user.user_id]
        if not own:
            return False
        path = path_of("rooms", room_id, "redact", self._random.choice(own), user.txn())
        status, _ = await user.call("PUT", path, {"reason": "regret"})
        return status == 200

    async def _put_state(self, type_: str, state_key: str, content: Json) -> bool:
        user, room_id = self._pair("join")
        status, answer = await user.call("PUT", path_of("rooms", room_id, "state", type_, state_key), content)
        if status == 200:
            self.events.setdefault(room_id, []).append((answer["event_id"], user.user_id))
        return status == 200

    async def state(self) -> bool:
        """Change name, topic or custom state."""
        text = f"value {self._next()}"
        type_, state_key, content = self._random.choice(
            [
                ("m.room.name", "", {"name": text}),
                ("m.room.topic", "", {"topic": text}),
                ("org.example.counter", self._random.choice(["", "a", "b"]), {"value": text}),
            ]
        )
        return await self._put_state(type_, state_key, content)

    async def rules(self) -> bool:
        """Change who may join or what newcomers see."""
        pick = self._random.choice
        type_, content = pick(
            [
                ("m.room.join_rules", {"join_rule": self._random.choice(["public", "invite", "knock"])}),
                (
                    "m.room.history_visibility",
                    {"history_visibility": self._random.choice(["joined", "shared"])},
                ),
            ]
        )
        return await self._put_state(type_, "", content)

    # ---- what is not in the room's history ----

    async def receipt(self) -> bool:
        """Read up to some event, in the open or in private, in a thread or not."""
        user, room_id = self._pair("join")
        event_id = self._event(room_id, recent=4)
        if event_id is None:
            return False
        kind = self._random.choice(["m.read", "m.read", "m.read.private"])
        body = self._random.choice([{}, {"thread_id": "main"}])
        status, _ = await user.call("POST", path_of("rooms", room_id, "receipt", kind, event_id), body)
        return status == 200

    async def read_marker(self) -> bool:
        """Move the marker of what was fully read."""
        user, room_id = self._pair("join")
        event_id = self._event(room_id, recent=4)
        if event_id is None:
            return False
        body = {"m.fully_read": event_id}
        status, _ = await user.call("POST", path_of("rooms", room_id, "read_markers"), body)
        return status == 200

    async def room_account_data(self) -> bool:
        """Set or empty account data of a room."""
        user, room_id = self._pair("join")
        path = path_of(
            "user", user.user_id, "rooms", room_id, "account_data", f"org.example.{self._random.randrange(3)}"
        )
        status, _ = await user.call("PUT", path, self._content())
        return status == 200

    async def account_data(self) -> bool:
        """Set or empty global account data."""
        user = self._user()
        path = path_of("user", user.user_id, "account_data", f"org.example.{self._random.randrange(3)}")
        status, _ = await user.call("PUT", path, self._content())
        return status == 200

    def _content(self) -> Json:
        return {} if self._random.random() < 0.2 else {"value": self._next()}

    async def tag(self) -> bool:
        """Tag a room."""
        user, room_id = self._pair("join")
        tag = self._random.choice(["m.favourite", "m.lowpriority", "u.work"])
        path = path_of("user", user.user_id, "rooms", room_id, "tags", tag)
        status, _ = await user.call("PUT", path, {"order": self._random.randrange(100) / 100})
        return status == 200

    async def untag(self) -> bool:
        """Remove a tag."""
        user, room_id = self._pair("join")
        path = path_of("user", user.user_id, "rooms", room_id, "tags", "m.favourite")
        status, _ = await user.call("DELETE", path)
        return status == 200

    async def to_device(self) -> bool:
        """Send a message to one of the observing devices."""
        user, device, number = self._user(), self._random.choice(self._observers), self._next()
        body = {"messages": {device.user_id: {device.device_id: {"number": number}}}}
        await user.ok("PUT", path_of("sendToDevice", "org.example.note", user.txn()), body)
        self.sent_to_device[device.device_id].append(number)
        return True

    async def change_device(self) -> bool:
        """Give a user's device new identity keys, or its first."""
        user = self._user()
        await user.upload_device_keys()
        self.changed_devices.add(user.user_id)
        return True

    async def push_rule(self) -> bool:
        """Mute or unmute a room."""
        user, room_id = self._pair("join")
        path = path_of("pushrules", "global", "room", room_id)
        if self._random.random() < 0.6:
            status, _ = await user.call("PUT", path, {"actions": []})
        else:
            status, _ = await user.call("DELETE", path)
        return status == 200

    async def profile(self) -> bool:
        """Change a display name, which changes the member events of all rooms."""
        user = self._user()
        path = path_of("profile", user.user_id, "displayname")
        await user.ok("PUT", path, {"displayname": f"name {self._next()}"})
        return True
