-- The kinds of a batch are applied in one order.

-- As in 0001, but the kinds come in the order of their names, and not as PostgreSQL happens to find them: access_token,
-- which locks accounts and then devices, before device and device_list. Whoever begins or refreshes a session locks
-- in that order as well, and each would wait for the other.
CREATE OR REPLACE FUNCTION log_append(
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
        FOR row_kind IN SELECT DISTINCT kind COLLATE "C" FROM unnest(rows) ORDER BY 1 LOOP
            EXECUTE format('SELECT %I($1)', 'log_apply_' || row_kind) USING
                (SELECT array_agg(l ORDER BY l.pos) FROM log l WHERE l.pos > before_pos AND l.kind = row_kind);
        END LOOP;
    END IF;

    UPDATE log_head SET pos = before_pos + event_count + cardinality(rows);
END $$;
