-- Saves a batch of messages: the whole batch or nothing; see `save.rs`.
--
-- If the batch was saved, the result is one row: how many conversations were reopened, the positions of
-- those that were inserted or updated, and whether there is any tombstone. If nothing was saved, the result
-- is empty: there is a tombstone that the caller does not know, another transaction inserted or deleted a
-- conversation since this statement began, or the row of this process in `writers` is gone. A message that is
-- already stored causes a unique violation.
--
-- The parts depend on each other and run in this order: locks, new conversations, changed conversations,
-- messages. Each handles the conversations in the order of the arrays, which is the order of the keys.
--
-- $1 to $12 are arrays of the conversations, $18 to $33, $37 and $38 of the messages; $18 is each message's conversation,
-- $38 an object with what few messages have.
WITH forbidden AS MATERIALIZED (
    SELECT any_exist,
           any_exist AND (EXISTS (
               SELECT FROM unnest($1::text[], $2::text[], $10::timestamptz[]) AS k (tenant_id, id, known_erasure)
               JOIN tombstones t ON t.tenant_id = k.tenant_id AND t.kind = 'conversation' AND t.subject = k.id
               WHERE k.known_erasure IS NULL OR k.known_erasure < t.erased_at)
           OR EXISTS (
               SELECT FROM unnest($13::text[], $14::text[], $15::timestamptz[]) AS u (tenant_id, id, known_erasure)
               JOIN tombstones t ON t.tenant_id = u.tenant_id AND t.kind = 'user' AND t.subject = u.id
               WHERE u.known_erasure IS NULL OR u.known_erasure < t.erased_at)) AS any_message
    FROM (SELECT EXISTS (SELECT FROM tombstones) AS any_exist) AS tombstones),

-- Whether the row of this process in `writers` still exists: a failover or a restore may have undone it.
writer AS MATERIALIZED (
    SELECT $35::int IS NULL OR EXISTS (SELECT FROM writers WHERE id = $35 AND started_at = $36) AS exists),

-- LATERAL, so that the plan does not depend on table statistics: one look-up for each, in this order.
locked AS MATERIALIZED (
    SELECT k.n, c.number,
           c.status = 'active' AND c.close_requested_at IS NULL
               AND c.last_message_at IS NOT NULL
               AND c.touched_at > clock_timestamp() - make_interval(secs => $16)
               AND (c.agent_id IS NOT NULL OR k.agent_id IS NULL)
               AND (c.user_id IS NOT NULL OR k.user_id IS NULL)
               AND (c.model_name IS NOT NULL OR k.model_name IS NULL)
               AND NOT $17 AS settled
    FROM unnest($1::text[], $2::text[], $5::text[], $6::text[], $7::text[]) WITH ORDINALITY
         AS k (tenant_id, id, agent_id, user_id, model_name, n)
    CROSS JOIN LATERAL (SELECT * FROM conversations c
                        WHERE c.tenant_id = k.tenant_id AND c.id = k.id
                        FOR KEY SHARE) AS c),

missing AS MATERIALIZED (
    SELECT k.*, nextval('conversations_number_seq') AS number
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                $8::timestamptz[], $9::timestamptz[], $11::timestamptz[], $12::bigint[])
         WITH ORDINALITY
         AS k (tenant_id, id, session_id, tenant_tier, agent_id, user_id, model_name,
               oldest, newest, erased_at, generation, n)
    WHERE (SELECT count(*) FROM locked) < cardinality($1)
      AND NOT (SELECT any_message FROM forbidden)
      AND (SELECT exists FROM writer)
      AND k.n NOT IN (SELECT n FROM locked)),

-- Other transactions do not see these rows before the commit, so they need no lock.
inserted AS (
    INSERT INTO conversations (number, tenant_id, id, session_id, tenant_tier, agent_id, user_id, model_name,
                               created_at, last_message_at, erased_at, hot_generation)
    SELECT number, tenant_id, id, session_id, tenant_tier, agent_id, user_id, model_name,
           oldest, newest, erased_at, generation
    FROM missing ORDER BY n
    ON CONFLICT (tenant_id, id) DO NOTHING
    RETURNING number),

-- The numbers of all conversations; no row if the batch cannot be saved.
ready AS MATERIALIZED (
    SELECT array_agg(number ORDER BY n) AS numbers
    FROM (SELECT n, number FROM locked UNION ALL SELECT n, number FROM missing) AS known
    HAVING count(*) = cardinality($1)
       AND (SELECT count(*) FROM inserted) = (SELECT count(*) FROM missing)
       AND NOT (SELECT any_message FROM forbidden)
       AND (SELECT exists FROM writer)),

-- Only conversations that need an update. No counters: they would serialise the saves of one conversation.
touched AS (
    UPDATE conversations c SET
        hot_generation = CASE WHEN $17 THEN ($12::bigint[])[gained.n] ELSE c.hot_generation END,
        status = 'active',
        -- A conversation that closes or is archived gets a new request if its sessions are closed. One that
        -- was idle gets none: it closes when its sessions close, or when it is idle again.
        close_requested_at = CASE
            WHEN c.close_requested_at IS NULL AND gained.was = 'active' THEN NULL
            WHEN gained.was = 'active' OR gained.sessions_closed THEN clock_timestamp() END,
        close_token = NULL,
        close_lease_until = NULL,
        close_reason = NULL,
        -- `conversation.migrated` was not published for one that was archived without messages.
        reopened = c.reopened OR gained.was = 'closing' OR (gained.was = 'archived' AND c.message_count IS DISTINCT FROM 0),
        touched_at = clock_timestamp(),
        last_message_at = greatest(c.last_message_at, ($9::timestamptz[])[gained.n]),
        agent_id = coalesce(c.agent_id, ($5::text[])[gained.n]),
        user_id = coalesce(c.user_id, ($6::text[])[gained.n]),
        model_name = coalesce(c.model_name, ($7::text[])[gained.n])
    FROM (SELECT l.n, l.number, c.status AS was,
                 c.status <> 'active' AND (
                     SELECT coalesce(bool_and(NOT s.open), false) FROM sessions s
                     WHERE s.tenant_id = c.tenant_id AND s.conversation_id = c.id) AS sessions_closed
          FROM ready, locked l JOIN conversations c ON c.number = l.number
          WHERE NOT l.settled
          ORDER BY l.n
          FOR NO KEY UPDATE OF c) AS gained
    WHERE c.number = gained.number
    RETURNING gained.was <> 'active' AS was_reopened),

added AS (
    INSERT INTO message_rows (conversation, id, role, content, content_parts, tool_calls, tool_call_id,
                              tokens_estimate, user_id, agent_id, model_name, processing_time_ms,
                              created_at, received_at, body_hash, metadata, format, saved_by,
                              item, usage, finish_reason, response_id, parent_message_id, context_hash, time_estimated)
    SELECT ready.numbers[r.n], r.id, r.role, r.content, r.parts::json, r.calls::json, r.call,
           r.estimate, r.user_id, r.agent_id, r.model_name, r.took,
           r.created_at, r.received_at, r.body_hash, r.metadata::json, $34, $35,
           r.item::json, (r.details::json)->'usage', (r.details::json)->>'finish_reason',
           (r.details::json)->>'response_id', (r.details::json)->>'parent_message_id', (r.details::json)->>'context_hash',
           ((r.details::json)->>'time_estimated')::boolean
    FROM ready,
         unnest($18::int[], $19::text[], $20::text[], $21::text[], $22::text[], $23::text[], $24::text[],
                $25::bigint[], $26::text[], $27::text[], $28::text[], $29::float8[],
                $30::timestamptz[], $31::timestamptz[], $32::bytea[], $33::text[],
                $37::text[], $38::text[])
         AS r (n, id, role, content, parts, calls, call, estimate, user_id, agent_id, model_name, took,
               created_at, received_at, body_hash, metadata, item, details))

SELECT (SELECT count(*) FROM touched WHERE was_reopened) AS reopened,
       (SELECT array_agg(n) FROM (SELECT n FROM missing UNION ALL SELECT n FROM locked WHERE NOT settled) AS it)
           AS touched,
       (SELECT any_exist FROM forbidden) AS tombstones
FROM ready
