-- Saves a batch of messages whose conversations need no change: the whole batch or nothing; see `save.rs`.
--
-- Inserts nothing if a conversation is missing or must be changed, if there are tombstones, or if the row of
-- this process in `writers` is gone. A message that is already stored causes a unique violation.
--
-- $1 to $5 are arrays of the conversations, $7 to $22, $26 and $27 of the messages; $7 is each message's conversation, $27
-- an object with what few messages have.
WITH locked AS MATERIALIZED (
    SELECT k.n, c.number,
           c.status = 'active' AND c.close_requested_at IS NULL
               AND c.last_message_at IS NOT NULL
               AND c.touched_at > clock_timestamp() - make_interval(secs => $6)
               AND (c.agent_id IS NOT NULL OR k.agent_id IS NULL)
               AND (c.user_id IS NOT NULL OR k.user_id IS NULL)
               AND (c.model_name IS NOT NULL OR k.model_name IS NULL) AS settled
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) WITH ORDINALITY
         AS k (tenant_id, id, agent_id, user_id, model_name, n)
    CROSS JOIN LATERAL (SELECT * FROM conversations c
                        WHERE c.tenant_id = k.tenant_id AND c.id = k.id
                        FOR KEY SHARE) AS c),

ready AS MATERIALIZED (
    SELECT array_agg(number ORDER BY n) AS numbers
    FROM locked
    HAVING count(*) FILTER (WHERE settled) = cardinality($1)
       AND NOT EXISTS (SELECT FROM tombstones)
       AND ($24::int IS NULL OR EXISTS (SELECT FROM writers WHERE id = $24 AND started_at = $25)))

INSERT INTO message_rows (conversation, id, role, content, content_parts, tool_calls, tool_call_id,
                          tokens_estimate, user_id, agent_id, model_name, processing_time_ms,
                          created_at, received_at, body_hash, metadata, format, saved_by,
                          item, usage, finish_reason, response_id, parent_message_id, context_hash, time_estimated)
SELECT ready.numbers[r.n], r.id, r.role, r.content, r.parts::json, r.calls::json, r.call,
       r.estimate, r.user_id, r.agent_id, r.model_name, r.took,
       r.created_at, r.received_at, r.body_hash, r.metadata::json, $23, $24,
       r.item::json, (r.details::json)->'usage', (r.details::json)->>'finish_reason',
       (r.details::json)->>'response_id', (r.details::json)->>'parent_message_id', (r.details::json)->>'context_hash',
       ((r.details::json)->>'time_estimated')::boolean
FROM ready,
     unnest($7::int[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[],
            $14::bigint[], $15::text[], $16::text[], $17::text[], $18::float8[],
            $19::timestamptz[], $20::timestamptz[], $21::bytea[], $22::text[], $26::text[], $27::text[])
     AS r (n, id, role, content, parts, calls, call, estimate, user_id, agent_id, model_name, took,
           created_at, received_at, body_hash, metadata, item, details)
