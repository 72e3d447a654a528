-- What reading in rooms asks for.

CREATE INDEX state_deltas_by_key ON state_deltas (room_nid, type, state_key, pos);
COMMENT ON INDEX state_deltas_by_key IS 'The history of one piece of state: who was in the room when, who could see it when';

CREATE INDEX relations_of_sender ON relations (target_id, sender) WHERE rel_type = 'm.annotation';
COMMENT ON INDEX relations_of_sender IS 'Whether somebody has reacted to an event already';

CREATE INDEX events_by_time ON events (room_nid, origin_server_ts) WHERE pos IS NOT NULL;
COMMENT ON INDEX events_by_time IS 'The event of a room nearest to a time';
