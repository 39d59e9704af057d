-- Who may read what over HTTP: row-level security for the role of the conversation-api, and API keys.
--
-- The role of the API is neither the owner of these tables nor a superuser. Every statement that it runs sees the rows
-- of one tenant: the one that the transaction's setting `verbatim.tenant` names. The setting is a tenant and its
-- HMAC-SHA-256; a statement that was injected into the API has no key, so it cannot choose another tenant. Workers
-- and commands own the tables; row-level security does not apply to owners (no FORCE).
--
-- `verbatim setup` creates the role, and grants it what `api_role.rs` lists.

-- The keys of these HMACs, as the two padded blocks of RFC 2104, so that SQL needs nothing but sha256(). Several are
-- valid while the secret is rotated. No role but the owner may read them.
CREATE TABLE api_tenant_keys (
    inner_block bytea NOT NULL CHECK (length(inner_block) = 64),
    outer_block bytea NOT NULL CHECK (length(outer_block) = 64),
    PRIMARY KEY (inner_block)
);

-- The tenant that is signed here. An error where the text is empty or its HMAC is another one. The tenant may be empty:
-- that is every tenant, for operators. No tenant's name is empty.
CREATE FUNCTION verbatim_signed_tenant(signed text) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
DECLARE
    tenant CONSTANT text := substr(signed, 66);
BEGIN
    IF signed = '' OR signed IS NULL THEN
        RAISE EXCEPTION 'row-level security: the setting verbatim.tenant is not set in this transaction'
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Only the conversation-api sets it. A role that reads all tenants needs BYPASSRLS, or a policy of its own.';
    END IF;
    IF NOT EXISTS (SELECT FROM api_tenant_keys k
                   WHERE encode(sha256(k.outer_block || sha256(k.inner_block || convert_to(tenant, 'UTF8'))), 'hex')
                         || ':' = left(signed, 65)) THEN
        RAISE EXCEPTION 'row-level security: the setting verbatim.tenant has a wrong signature'
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'API_SECRET of the conversation-api is not the one with which verbatim setup ran last.';
    END IF;
    RETURN tenant;
END $$;

-- The tenant of this transaction. The setting is empty on a connection that had one in an earlier transaction.
CREATE FUNCTION verbatim_tenant() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT verbatim_signed_tenant(current_setting('verbatim.tenant', true))
$$;

CREATE TABLE api_keys (
    -- The part of the key that is shown in lists, logs and the audit log.
    id                   text COLLATE "C" PRIMARY KEY,
    -- `*`: every tenant; the key of an operator.
    tenant_id            text COLLATE "C" NOT NULL,
    name                 text NOT NULL,
    scopes               text[] NOT NULL,
    -- From which networks it is accepted, in CIDR notation; empty: from everywhere.
    networks             text[] NOT NULL,
    -- SHA-256 of the secret part.
    secret_hash          bytea NOT NULL,
    -- The secret before the last rotation, and until when it is accepted.
    previous_secret_hash bytea,
    previous_until       timestamptz,
    created_at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at           timestamptz,
    revoked_at           timestamptz,
    last_used_at         timestamptz,
    -- Another number after each change but of `last_used_at`.
    version              bigint NOT NULL DEFAULT 1
);

CREATE INDEX api_keys_by_tenant ON api_keys (tenant_id, created_at) WHERE created_at IS NOT NULL;

-- The key with this id, if the hash is that of a secret which it accepts. So the role of the API sees no hash.
CREATE FUNCTION verbatim_api_key(key_id text, hash bytea)
RETURNS TABLE (tenant_id text, name text, scopes text[], networks text[], version bigint, revoked_at timestamptz,
               accepted_until timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT k.tenant_id, k.name, k.scopes, k.networks, k.version, k.revoked_at,
           CASE WHEN k.secret_hash = hash THEN k.expires_at ELSE least(k.expires_at, k.previous_until) END
    FROM api_keys k
    WHERE k.id = key_id AND (k.secret_hash = hash OR k.previous_secret_hash = hash)
$$;

-- What signed requests used once, so that nobody sends one again.
CREATE TABLE api_nonces (
    key_id     text COLLATE "C" NOT NULL,
    nonce      text COLLATE "C" NOT NULL,
    -- From then on the timestamp of its request is too old.
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (key_id, nonce)
);

CREATE INDEX api_nonces_by_expiry ON api_nonces (expires_at);

-- Which PostgreSQL, in which state of its history, has this table. `postgresql_identity.rs` says what each part is for.
CREATE FUNCTION verbatim_identity(of_table regclass) RETURNS text
LANGUAGE sql VOLATILE AS $$
    SELECT concat_ws(':', (pg_control_system()).system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8),
                     of_table::oid, pg_relation_filenode(of_table))
$$;

-- Since when `api_nonces` has every nonce that was accepted. A failover to a standby that lagged behind, or a restore, loses
-- the last ones; then `identity` is another one. There is one row.
CREATE TABLE api_nonce_history (
    is_only        boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    identity       text NOT NULL,
    complete_since timestamptz NOT NULL
);

INSERT INTO api_nonce_history (identity, complete_since)
VALUES (verbatim_identity('api_nonces'), '-infinity');

-- HMAC-SHA-256 (RFC 2104) with a key of 32 bytes.
CREATE FUNCTION verbatim_hmac(key bytea, message text) RETURNS bytea
LANGUAGE sql IMMUTABLE AS $$
    SELECT sha256(outer_block || sha256(inner_block || convert_to(message, 'UTF8')))
    FROM (SELECT decode(string_agg(lpad(to_hex(get_byte(key, i) # 54), 2, '0'), '' ORDER BY i) || repeat('36', 32), 'hex')
                     AS inner_block,
                 decode(string_agg(lpad(to_hex(get_byte(key, i) # 92), 2, '0'), '' ORDER BY i) || repeat('5c', 32), 'hex')
                     AS outer_block
          FROM generate_series(0, 31) AS i) AS blocks
$$;

-- The key that signed this text, if it did; `is_first` tells whether its nonce was not used before. It is null where the
-- text was signed before this PostgreSQL has every nonce: then nobody can tell. The hash of the secret
-- is the key of the HMAC: so the role of the API sees no hash. Signatures are compared by their hashes with random bytes:
-- the time that takes says nothing about the right one.
CREATE FUNCTION verbatim_signed_request(signing_key text, request_nonce text, message text, signature bytea,
                                        keep_nonce interval)
RETURNS TABLE (tenant_id text, name text, scopes text[], networks text[], version bigint, revoked_at timestamptz,
               accepted_until timestamptz, is_first boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$
DECLARE
    salt CONSTANT bytea := uuid_send(gen_random_uuid());
    found_key record;
    current_identity CONSTANT text := verbatim_identity('api_nonces');
    inserted bigint;
    is_new boolean;
BEGIN
    DELETE FROM api_nonces n
    WHERE (n.key_id, n.nonce) IN (SELECT e.key_id, e.nonce FROM api_nonces e WHERE e.expires_at < clock_timestamp()
                                  ORDER BY e.expires_at LIMIT 10 FOR UPDATE SKIP LOCKED);
    SELECT k.tenant_id, k.name, k.scopes, k.networks, k.version, k.revoked_at,
           CASE WHEN s.is_current THEN k.expires_at ELSE least(k.expires_at, k.previous_until) END AS accepted_until
    INTO found_key
    FROM api_keys k, (VALUES (true), (false)) AS s (is_current)
    WHERE k.id = signing_key
      AND sha256(salt || verbatim_hmac(CASE WHEN s.is_current THEN k.secret_hash ELSE k.previous_secret_hash END, message))
          = sha256(salt || signature);
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- Of several calls at once one changes the row; the others wait for it.
    UPDATE api_nonce_history h SET identity = current_identity, complete_since = clock_timestamp()
    WHERE h.identity <> current_identity;
    -- The second line of what was signed is its time.
    IF EXISTS (SELECT FROM api_nonce_history h
               WHERE to_timestamp(split_part(message, E'\n', 2)::bigint) > h.complete_since) THEN
        INSERT INTO api_nonces (key_id, nonce, expires_at)
        VALUES (signing_key, request_nonce, clock_timestamp() + keep_nonce)
        ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS inserted = ROW_COUNT;
        is_new := inserted = 1;
    END IF;
    -- Left out while another transaction has locked the row: only lists show it.
    UPDATE api_keys k SET last_used_at = clock_timestamp()
    WHERE k.id = (SELECT i.id FROM api_keys i
                  WHERE i.id = signing_key
                    AND (i.last_used_at IS NULL OR i.last_used_at < clock_timestamp() - interval '10 seconds')
                  FOR NO KEY UPDATE SKIP LOCKED);
    RETURN QUERY SELECT found_key.tenant_id, found_key.name, found_key.scopes, found_key.networks, found_key.version,
                        found_key.revoked_at, found_key.accepted_until, is_new;
END $$;

-- The versions of those of these keys that are not revoked.
CREATE FUNCTION verbatim_api_key_versions(key_ids text[])
RETURNS TABLE (id text, version bigint)
LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT k.id, k.version FROM api_keys k WHERE k.id = ANY (key_ids) AND k.revoked_at IS NULL
$$;

-- Records when these keys were last used, except those whose row another transaction has locked: only lists show the time.
-- So replicas neither wait for others nor deadlock.
CREATE FUNCTION verbatim_api_keys_used(key_ids text[], used_at timestamptz[])
RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER AS $$
    WITH updated AS (
        UPDATE api_keys k SET last_used_at = least(used.at, clock_timestamp())
        FROM (SELECT locked.id, u.at
              FROM unnest(key_ids, used_at) AS u (id, at)
              JOIN (SELECT i.id FROM api_keys i WHERE i.id = ANY (key_ids) FOR NO KEY UPDATE SKIP LOCKED) AS locked
                ON locked.id = u.id) AS used
        WHERE k.id = used.id AND isfinite(used.at) AND (k.last_used_at IS NULL OR k.last_used_at < used.at)
        RETURNING 1)
    SELECT count(*) FROM updated
$$;

-- The lexeme of a tenant and of the month, day, hour or minute of a time. No word has a slash (`domain::words`), so neither
-- a message nor a search can name one.
CREATE FUNCTION verbatim_word_mark(unit text, tenant text, at timestamptz) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT '/' || left(to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI'),
                       CASE unit WHEN 'month' THEN 7 WHEN 'day' THEN 10 WHEN 'hour' THEN 13 ELSE 16 END)
           || '/' || tenant
$$;

-- Archived conversations of the tenant of this transaction that have all of these words in one block, newest first: at most
-- `places`, which began before `after_at` or then with a smaller id, and match the filter, where it is not null.
-- A last row that is no match says where the time ended: the next search begins there.
--
-- It walks the months that have conversations, each by one look-up in the index of words. A month of more than `most`
-- blocks is walked by days, such a day by hours, such an hour by minutes, so that a look-up of a frequent word is bounded,
-- too. `most` is 500 at first, so that a frequent word fills its page with little work; it grows to 10 000, so that a rare
-- word needs few look-ups. How many blocks a month or a day has is stored: to count them would take longer than the
-- look-up of a rare word. The time is compared before each look-up but the first. The tenant is in each look-up twice, as a
-- mark and as a column, and is the signed one.
CREATE FUNCTION verbatim_conversations_with_words(
    search_words text[], of_agent text, of_user text, of_model text, since timestamptz, until timestamptz,
    after_at timestamptz, after_id text, places integer, milliseconds integer)
RETURNS TABLE (found_at timestamptz, found_id text, is_match boolean)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET TimeZone = 'UTC' SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    tenant CONSTANT text := verbatim_tenant();
    ends CONSTANT timestamptz := clock_timestamp() + make_interval(secs => milliseconds / 1000.0);
    earliest CONSTANT timestamptz := coalesce(since, '-infinity');
    -- The walk is at the conversations before this place.
    before_at timestamptz := coalesce(after_at, until, 'infinity');
    before_id text := coalesce(after_id, '');
    is_first boolean := true;
    free integer := places;
    units CONSTANT text[] := ARRAY['month', 'day', 'hour', 'minute'];
    unit text;
    newest timestamptz;
    start timestamptz;
    most integer := 500;
BEGIN
    WHILE free > 0 LOOP
        SELECT w.created_at INTO newest FROM conversation_words w
        WHERE w.tenant_id = tenant AND w.created_at >= earliest
          AND (w.created_at, w.conversation_id) < (before_at, before_id COLLATE "C")
        ORDER BY w.created_at DESC, w.conversation_id DESC LIMIT 1;
        EXIT WHEN NOT FOUND;
        IF NOT is_first AND clock_timestamp() >= ends THEN
            RETURN QUERY SELECT before_at, before_id, false;
            EXIT;
        END IF;
        is_first := false;
        -- The longest time that is not too large.
        FOREACH unit IN ARRAY units LOOP
            start := date_trunc(unit, newest);
            EXIT WHEN CASE
                WHEN unit IN ('month', 'day') THEN most >= (
                    SELECT sum(d.blocks) FROM conversation_word_days d
                    WHERE d.tenant_id = tenant AND d.day >= start::date
                      AND d.day < (start + ('1 ' || unit)::interval)::date)
                WHEN unit = 'hour' THEN NOT EXISTS (
                    SELECT FROM conversation_words w
                    WHERE w.tenant_id = tenant AND w.created_at >= start AND w.created_at < start + interval '1 hour'
                    ORDER BY w.created_at OFFSET most LIMIT 1)
                ELSE true END;
        END LOOP;
        FOR found_at, found_id IN
            SELECT b.created_at, b.conversation_id
            -- The condition on the tenant is one that no index has: else it might be chosen instead of that of words.
            FROM (SELECT DISTINCT w.created_at, w.conversation_id, w.finalised_at FROM conversation_words w
                  WHERE w.words @> (search_words || verbatim_word_mark(unit, tenant, newest))
                    AND w.tenant_id || '' = tenant AND w.created_at >= earliest
                    AND (w.created_at, w.conversation_id) < (before_at, before_id COLLATE "C")
                  ORDER BY w.created_at DESC, w.conversation_id DESC OFFSET 0) AS b
            CROSS JOIN LATERAL (
                SELECT FROM conversations c
                WHERE c.tenant_id = tenant AND c.id = b.conversation_id
                  AND c.status = 'archived' AND c.finalised_at = b.finalised_at
                  AND (of_agent IS NULL OR c.agent_id = of_agent) AND (of_user IS NULL OR c.user_id = of_user)
                  AND (of_model IS NULL OR c.model_name = of_model)
                LIMIT 1) AS c
            LIMIT free
        LOOP
            is_match := true;
            free := free - 1;
            RETURN NEXT;
        END LOOP;
        before_at := start;
        before_id := '';
        most := least(4 * most, 10000);
    END LOOP;
END $$;

REVOKE ALL ON FUNCTION verbatim_api_key(text, bytea), verbatim_api_key_versions(text[]), verbatim_signed_tenant(text),
                       verbatim_hmac(bytea, text), verbatim_identity(regclass), verbatim_signed_request(text, text, text, bytea, interval),
                       verbatim_api_keys_used(text[], timestamptz[]), verbatim_word_mark(text, text, timestamptz),
                       verbatim_conversations_with_words(text[], text, text, text, timestamptz, timestamptz, timestamptz,
                                                         text, integer, integer) FROM PUBLIC;

-- These functions run with the rights of the owner: they take tables of this schema alone, whatever the caller's search
-- path is. `pg_temp` is last, because it would be the first if it were left out.
DO $$
DECLARE
    function regprocedure;
BEGIN
    FOREACH function IN ARRAY ARRAY['verbatim_tenant()', 'verbatim_signed_tenant(text)',
                                    'verbatim_signed_request(text, text, text, bytea, interval)',
                                    'verbatim_api_key(text, bytea)', 'verbatim_api_key_versions(text[])',
                                    'verbatim_api_keys_used(text[], timestamptz[])',
                                    'verbatim_conversations_with_words(text[], text, text, text, timestamptz, timestamptz,
                                                                       timestamptz, text, integer, integer)'
                                   ]::regprocedure[] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog, %I, pg_temp', function, current_schema());
    END LOOP;
END $$;

-- The policies. The subquery `(SELECT verbatim_tenant())` is evaluated once for each statement. What is filed under a
-- number looks up its conversation; OFFSET 0 keeps that a look-up by number, which PostgreSQL would else turn into a
-- join over all conversations of the tenant.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['conversations', 'sessions', 'session_events', 'conversation_stats',
                                'daily_stats'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY rows_of_the_tenant ON %I FOR SELECT
                        USING (tenant_id = (SELECT verbatim_tenant()))', name);
    END LOOP;
    FOREACH name IN ARRAY ARRAY['message_rows', 'message_tokens'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY rows_of_the_tenant ON %I FOR SELECT
                        USING (EXISTS (SELECT FROM conversations c
                                       WHERE c.number = conversation AND c.tenant_id = (SELECT verbatim_tenant())
                                       OFFSET 0))', name);
    END LOOP;
END $$;

-- Only the role of the API for operators may touch dead letters. With the key of a tenant it sees those of this tenant;
-- with the key of an operator, which sets every tenant, also those that name none.
ALTER TABLE dead_letters ENABLE ROW LEVEL SECURITY;
CREATE POLICY rows_of_the_tenant ON dead_letters USING ((SELECT verbatim_tenant()) IN (tenant_id, ''));
