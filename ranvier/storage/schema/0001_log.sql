-- The commit-ordered log, rooms, events and state.

CREATE SEQUENCE nid_block INCREMENT BY 4096;
COMMENT ON SEQUENCE nid_block IS
    'Each value is the first of 4096 integers that one process may give to rooms, events and snapshots';

CREATE TABLE server (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    server_name text NOT NULL
);
COMMENT ON TABLE server IS 'Whose database this is: a server name can not change once users exist';

CREATE TABLE log_head (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    pos      bigint NOT NULL
);
COMMENT ON TABLE log_head IS 'One row, locked by each append until its commit: so positions become visible in order';
COMMENT ON COLUMN log_head.pos IS 'Position of the newest row of the log';
INSERT INTO log_head (pos) VALUES (0);

CREATE TABLE log (
    pos       bigint PRIMARY KEY,
    kind      text NOT NULL,
    room_id   text,
    user_id   text,
    device_id text,
    key       text,
    key2      text,
    body      bytea
);
COMMENT ON TABLE log IS 'Rows of the log that are not events, for followers that missed a message; old rows are removed';
COMMENT ON COLUMN log.pos IS 'Position in the log, shared with events.pos';
COMMENT ON COLUMN log.kind IS 'What the row is; the function log_apply_<kind>(log[]) keeps the lasting tables';
COMMENT ON COLUMN log.room_id IS 'Room that the row concerns, if any';
COMMENT ON COLUMN log.user_id IS 'User that the row concerns, if any';
COMMENT ON COLUMN log.device_id IS 'Device that the row concerns, if any';
COMMENT ON COLUMN log.key IS 'First part of the key within its kind (account data type, receipt type, …)';
COMMENT ON COLUMN log.key2 IS 'Second part of the key within its kind (thread id, …)';
COMMENT ON COLUMN log.body IS 'The content, as the kind has it (mostly JSON)';

CREATE TABLE rooms (
    room_nid     bigint PRIMARY KEY,
    room_id      text NOT NULL UNIQUE,
    version      text NOT NULL,
    head         bigint NOT NULL,
    snapshot_nid bigint NOT NULL,
    extremities  bigint[] NOT NULL
) WITH (fillfactor = 70);
COMMENT ON TABLE rooms IS 'Rooms that this server takes part in';
COMMENT ON COLUMN rooms.room_nid IS 'Integer that stands for the room inside of this database';
COMMENT ON COLUMN rooms.version IS 'Room version';
COMMENT ON COLUMN rooms.head IS 'Log position of the newest event: a writer says which head it computed on, and is refused if it moved';
COMMENT ON COLUMN rooms.snapshot_nid IS 'Snapshot of the current state';
COMMENT ON COLUMN rooms.extremities IS 'event_nid of the events that nothing follows yet';

CREATE TABLE events (
    event_nid        bigint PRIMARY KEY,
    pos              bigint,
    room_nid         bigint NOT NULL,
    event_id         text NOT NULL,
    type             text NOT NULL,
    state_key        text,
    sender           text NOT NULL,
    depth            bigint NOT NULL,
    origin_server_ts bigint NOT NULL,
    snapshot_nid     bigint,
    replaces_nid     bigint,
    redacted_by      bigint,
    rejected         boolean NOT NULL DEFAULT false,
    soft_failed      boolean NOT NULL DEFAULT false,
    auth_chain       bytea,
    txn_device       text,
    txn_id           text,
    pdu              bytea NOT NULL
) WITH (fillfactor = 95);
COMMENT ON TABLE events IS 'Every event that this server knows';
COMMENT ON COLUMN events.event_nid IS 'Integer that stands for the event inside of this database';
COMMENT ON COLUMN events.pos IS 'Log position; negative for backfilled history (older is smaller); null for an event that is not in the timeline (outlier, rejected)';
COMMENT ON COLUMN events.snapshot_nid IS 'Snapshot of the state before this event; null where it is not known (outlier)';
COMMENT ON COLUMN events.replaces_nid IS 'For a state event: the event of the same type and state key that it replaced';
COMMENT ON COLUMN events.redacted_by IS 'event_nid of the redaction that took effect on this event';
COMMENT ON COLUMN events.rejected IS 'Refused by the authorisation rules';
COMMENT ON COLUMN events.soft_failed IS 'Allowed by the state before it but not by the current state when it came: kept, never shown';
COMMENT ON COLUMN events.auth_chain IS 'For a state event: roaring bitmap (64 bit) of the event_nid of its full auth chain, itself not included';
COMMENT ON COLUMN events.txn_device IS 'Device of ours that sent it with a transaction id';
COMMENT ON COLUMN events.txn_id IS 'Transaction id, shown to that device only';
COMMENT ON COLUMN events.pdu IS 'The event as signed and sent between servers, JSON';
CREATE UNIQUE INDEX events_by_id ON events (event_id);
CREATE INDEX events_by_room ON events (room_nid, pos) WHERE pos IS NOT NULL;
CREATE INDEX events_by_pos ON events (pos) WHERE pos IS NOT NULL;
CREATE INDEX events_by_state_key ON events (room_nid, type, state_key) WHERE state_key IS NOT NULL;

CREATE TABLE room_nids (
    room_id  text PRIMARY KEY,
    room_nid bigint NOT NULL UNIQUE
);
COMMENT ON TABLE room_nids IS 'Integers of rooms that are being joined, whose state is stored before the room is';
COMMENT ON COLUMN room_nids.room_id IS 'Room id';
COMMENT ON COLUMN room_nids.room_nid IS 'What rooms.room_nid will be';

CREATE TABLE event_edges (
    room_nid   bigint NOT NULL,
    prev_id    text NOT NULL,
    event_nid  bigint NOT NULL,
    PRIMARY KEY (prev_id, event_nid)
);
COMMENT ON TABLE event_edges IS 'Which received events follow an event that is not stored yet (backward extremities)';

CREATE TABLE snapshots (
    snapshot_nid bigint PRIMARY KEY,
    room_nid     bigint NOT NULL,
    parent_nid   bigint,
    steps        integer NOT NULL,
    state        bytea,
    added        bigint[],
    removed      bigint[]
);
COMMENT ON TABLE snapshots IS 'Immutable room states: a set of event_nid, as a whole or as a change to a parent';
COMMENT ON COLUMN snapshots.parent_nid IS 'Snapshot that this one changes; null for a full copy';
COMMENT ON COLUMN snapshots.steps IS 'How many changes lie between this and a full copy';
COMMENT ON COLUMN snapshots.state IS 'Full copy: roaring bitmap (64 bit) of event_nid';
COMMENT ON COLUMN snapshots.added IS 'event_nid in this state and not in the parent';
COMMENT ON COLUMN snapshots.removed IS 'event_nid in the parent and not in this state';

CREATE TABLE current_state (
    room_nid   bigint NOT NULL,
    type       text NOT NULL,
    state_key  text NOT NULL,
    event_nid  bigint NOT NULL,
    membership text,
    PRIMARY KEY (room_nid, type, state_key)
) WITH (fillfactor = 90);
COMMENT ON TABLE current_state IS 'The current state of each room';
COMMENT ON COLUMN current_state.membership IS 'For m.room.member: join, invite, leave, ban or knock';
CREATE INDEX current_state_members ON current_state (state_key, membership) WHERE type = 'm.room.member';

CREATE TABLE state_deltas (
    pos       bigint NOT NULL,
    room_nid  bigint NOT NULL,
    type      text NOT NULL,
    state_key text NOT NULL,
    event_nid bigint,
    prev_nid  bigint,
    PRIMARY KEY (room_nid, pos, type, state_key)
);
COMMENT ON TABLE state_deltas IS 'How the current state of a room changed along the log';
COMMENT ON COLUMN state_deltas.pos IS 'Log position of the event with which the change took place';
COMMENT ON COLUMN state_deltas.event_nid IS 'The new event of this key; null if the key went away';
COMMENT ON COLUMN state_deltas.prev_nid IS 'The event of this key before; null if there was none';
CREATE INDEX state_deltas_members ON state_deltas (state_key, pos) WHERE type = 'm.room.member';

CREATE TABLE redactions (
    target_id  text NOT NULL,
    event_nid  bigint NOT NULL,
    PRIMARY KEY (target_id, event_nid)
);
COMMENT ON TABLE redactions IS 'Which events name which as redacted, also before the target is known';

CREATE TABLE relations (
    target_id text NOT NULL,
    rel_type  text NOT NULL,
    event_nid bigint NOT NULL,
    pos       bigint,
    room_nid  bigint NOT NULL,
    type      text NOT NULL,
    sender    text NOT NULL,
    PRIMARY KEY (target_id, rel_type, event_nid)
);
COMMENT ON TABLE relations IS 'm.relates_to of each event';
COMMENT ON COLUMN relations.target_id IS 'Event that is related to';
COMMENT ON COLUMN relations.pos IS 'Position of the relating event, as in events.pos';
CREATE INDEX relations_threads ON relations (room_nid, pos) WHERE rel_type = 'm.thread';

CREATE TABLE transactions (
    user_id   text NOT NULL,
    device_id text NOT NULL,
    scope     text NOT NULL,
    txn_id    text NOT NULL,
    event_id  text NOT NULL,
    sent_ts   bigint NOT NULL,
    PRIMARY KEY (user_id, device_id, scope, txn_id)
);
COMMENT ON TABLE transactions IS 'Transaction ids of sent events: a retry gets the first answer; old rows are removed';
COMMENT ON COLUMN transactions.scope IS 'The endpoint and what it names (room, event type)';
COMMENT ON COLUMN transactions.sent_ts IS 'Milliseconds since the epoch';

-- What one append is made of --------------------------------------------------------------------

CREATE TYPE room_guard AS (
    room_nid bigint, room_id text, version text, expected_head bigint,
    snapshot_nid bigint, extremities bigint[]
);
CREATE TYPE new_event AS (
    event_nid bigint, room_nid bigint, event_id text, type text, state_key text, sender text, depth bigint,
    origin_server_ts bigint, snapshot_nid bigint, replaces_nid bigint, auth_chain bytea,
    txn_device text, txn_id text, txn_scope text, pdu bytea
);
CREATE TYPE new_snapshot AS (
    snapshot_nid bigint, room_nid bigint, parent_nid bigint, steps integer, state bytea, added bigint[], removed bigint[]
);
CREATE TYPE state_change AS (
    room_nid bigint, at_nid bigint, type text, state_key text, event_nid bigint, prev_nid bigint, membership text
);
CREATE TYPE new_relation AS (event_nid bigint, room_nid bigint, target_id text, rel_type text, type text, sender text);
CREATE TYPE new_redaction AS (event_nid bigint, room_nid bigint, target_id text, effective boolean);
CREATE TYPE log_row AS (
    kind text, room_id text, user_id text, device_id text, key text, key2 text, body bytea
);

-- Append one batch: reserve positions, compare the heads of the rooms, insert. One round trip, one commit.
-- Gives the position before the batch and the rooms that were refused and of which nothing was written: those
-- whose head had moved, and those with a transaction id that was used before. Positions stay without gaps: the
-- events that were kept come first, in the order given, then the rows.
CREATE FUNCTION log_append(
    guards room_guard[], new_events new_event[], new_snapshots new_snapshot[], changes state_change[],
    new_relations new_relation[], new_redactions new_redaction[], rows log_row[], now_ms bigint,
    OUT before_pos bigint, OUT moved bigint[], OUT repeated bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
    refused bigint[] := '{}';
    event_count bigint := 0;
    row_kind text;
BEGIN
    -- The lock of the log: what follows happens one batch after the other, up to the commit.
    SELECT pos INTO before_pos FROM log_head FOR UPDATE;
    moved := '{}';
    repeated := '{}';
    IF cardinality(guards) > 0 THEN
        SELECT coalesce(array_agg(g.room_nid), '{}') INTO moved
            FROM unnest(guards) g LEFT JOIN rooms r ON r.room_nid = g.room_nid
            WHERE coalesce(r.head, 0) <> g.expected_head;
        SELECT coalesce(array_agg(DISTINCT e.room_nid), '{}') INTO repeated
            FROM unnest(new_events) e JOIN transactions t
              ON t.user_id = e.sender AND t.device_id = e.txn_device AND t.scope = e.txn_scope AND t.txn_id = e.txn_id
            WHERE e.txn_id IS NOT NULL AND NOT e.room_nid = ANY (moved);
        refused := moved || repeated;

        INSERT INTO events (event_nid, pos, room_nid, event_id, type, state_key, sender, depth, origin_server_ts,
                            snapshot_nid, replaces_nid, auth_chain, txn_device, txn_id, pdu)
            SELECT event_nid, before_pos + row_number() OVER (ORDER BY ordinality), room_nid, event_id, type,
                   state_key, sender, depth, origin_server_ts, snapshot_nid, replaces_nid, auth_chain, txn_device,
                   txn_id, pdu
            FROM unnest(new_events) WITH ORDINALITY WHERE NOT room_nid = ANY (refused)
            -- an event that was stored as an outlier before becomes part of the timeline
            ON CONFLICT (event_nid) DO UPDATE SET pos = excluded.pos, snapshot_nid = excluded.snapshot_nid,
                   replaces_nid = excluded.replaces_nid;
        GET DIAGNOSTICS event_count = ROW_COUNT;

        INSERT INTO rooms AS r (room_nid, room_id, version, head, snapshot_nid, extremities)
            SELECT g.room_nid, g.room_id, g.version, last.pos, g.snapshot_nid, g.extremities
            FROM unnest(guards) g JOIN (
                SELECT e.room_nid, max(e.pos) AS pos FROM unnest(new_events) n JOIN events e USING (event_nid)
                GROUP BY e.room_nid) last USING (room_nid)
            WHERE NOT g.room_nid = ANY (refused)
            ON CONFLICT (room_nid) DO UPDATE SET head = excluded.head, snapshot_nid = excluded.snapshot_nid,
                   extremities = excluded.extremities;

        IF cardinality(new_snapshots) > 0 THEN
            INSERT INTO snapshots (snapshot_nid, room_nid, parent_nid, steps, state, added, removed)
                SELECT snapshot_nid, room_nid, parent_nid, steps, state, added, removed
                FROM unnest(new_snapshots) WHERE NOT room_nid = ANY (refused);
        END IF;

        IF cardinality(changes) > 0 THEN
            INSERT INTO state_deltas (pos, room_nid, type, state_key, event_nid, prev_nid)
                SELECT e.pos, c.room_nid, c.type, c.state_key, c.event_nid, c.prev_nid
                FROM unnest(changes) c JOIN events e ON e.event_nid = c.at_nid
                WHERE NOT c.room_nid = ANY (refused);
            -- Of several changes of one key in a batch, the last one is the current state.
            INSERT INTO current_state (room_nid, type, state_key, event_nid, membership)
                SELECT room_nid, type, state_key, event_nid, membership FROM (
                    SELECT DISTINCT ON (room_nid, type, state_key) room_nid, type, state_key, event_nid, membership
                    FROM unnest(changes) WITH ORDINALITY WHERE NOT room_nid = ANY (refused)
                    ORDER BY room_nid, type, state_key, ordinality DESC) last
                WHERE event_nid IS NOT NULL
                ON CONFLICT (room_nid, type, state_key) DO UPDATE
                    SET event_nid = excluded.event_nid, membership = excluded.membership;
            DELETE FROM current_state s USING (
                    SELECT DISTINCT ON (room_nid, type, state_key) room_nid, type, state_key, event_nid
                    FROM unnest(changes) WITH ORDINALITY WHERE NOT room_nid = ANY (refused)
                    ORDER BY room_nid, type, state_key, ordinality DESC) last
                WHERE last.event_nid IS NULL AND s.room_nid = last.room_nid AND s.type = last.type
                  AND s.state_key = last.state_key;
        END IF;

        IF cardinality(new_relations) > 0 THEN
            INSERT INTO relations (target_id, rel_type, event_nid, pos, room_nid, type, sender)
                SELECT n.target_id, n.rel_type, n.event_nid, e.pos, n.room_nid, n.type, n.sender
                FROM unnest(new_relations) n JOIN events e USING (event_nid)
                WHERE NOT n.room_nid = ANY (refused)
                ON CONFLICT DO NOTHING;
        END IF;

        IF cardinality(new_redactions) > 0 THEN
            INSERT INTO redactions (target_id, event_nid)
                SELECT target_id, event_nid FROM unnest(new_redactions) WHERE NOT room_nid = ANY (refused)
                ON CONFLICT DO NOTHING;
            UPDATE events t SET redacted_by = n.event_nid FROM unnest(new_redactions) n
                WHERE n.effective AND NOT n.room_nid = ANY (refused)
                  AND t.event_id = n.target_id AND t.room_nid = n.room_nid AND t.redacted_by IS NULL;
            -- A redacted event does not relate to anything any more.
            DELETE FROM relations r USING events t, unnest(new_redactions) n
                WHERE n.effective AND NOT n.room_nid = ANY (refused)
                  AND t.event_id = n.target_id AND t.room_nid = n.room_nid AND r.event_nid = t.event_nid;
        END IF;

        INSERT INTO transactions (user_id, device_id, scope, txn_id, event_id, sent_ts)
            SELECT sender, txn_device, txn_scope, txn_id, event_id, now_ms
            FROM unnest(new_events) WHERE txn_id IS NOT NULL AND NOT room_nid = ANY (refused);
    END IF;

    IF cardinality(rows) > 0 THEN
        INSERT INTO log (pos, kind, room_id, user_id, device_id, key, key2, body)
            SELECT before_pos + event_count + ordinality, kind, room_id, user_id, device_id, key, key2, body
            FROM unnest(rows) WITH ORDINALITY;
        FOR row_kind IN SELECT DISTINCT kind FROM unnest(rows) LOOP
            EXECUTE format('SELECT %I($1)', 'log_apply_' || row_kind) USING
                (SELECT array_agg(l ORDER BY l.pos) FROM log l WHERE l.pos > before_pos AND l.kind = row_kind);
        END LOOP;
    END IF;

    UPDATE log_head SET pos = before_pos + event_count + cardinality(rows);
END $$;
COMMENT ON FUNCTION log_append IS 'The only writer of the log';
