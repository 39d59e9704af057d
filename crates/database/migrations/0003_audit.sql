-- The audit log is a set of chains of hashes, so that an entry that was changed, removed or moved is found.
--
-- Each start of a process has a chain of its own, so that no process waits for another one. Once a minute a checkpoint
-- records the last entry of every chain that grew; the checkpoints are a chain themselves. A checkpoint is logged: whoever
-- keeps it outside of this database can show later that nothing before it was changed. `verbatim audit verify` checks all
-- of this.

-- The last entry of each chain. Rows are updated with every entry.
CREATE TABLE audit_chains (
    chain      uuid PRIMARY KEY,
    process    text NOT NULL,
    n          bigint NOT NULL,
    hash       bytea NOT NULL,
    -- `n` in the last checkpoint that recorded this chain, and the number of that checkpoint.
    checked_n  bigint NOT NULL DEFAULT 0,
    checked_in bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

CREATE TABLE audit_checkpoints (
    n      bigint PRIMARY KEY CHECK (n > 0),
    at     timestamptz NOT NULL,
    -- [chain, n, hash] of the last entry of each chain that grew since the checkpoint before, in the order of chains.
    chains json NOT NULL,
    -- Over `n`, `at`, `chains`, and the hash of the checkpoint before.
    hash   bytea NOT NULL
);

-- A value as the hash of an entry has it: its length in bytes, a colon, and the value; `-` if it is null. So no two entries
-- have the same text.
CREATE FUNCTION verbatim_audit_value(value text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$ SELECT coalesce(octet_length(value) || ':' || value, '-') $$;

-- The hash of an entry after the entry with this hash. `audit/chain.rs` computes the same.
CREATE FUNCTION verbatim_audit_hash(previous bytea, entry audit_log) RETURNS bytea
LANGUAGE sql STABLE AS $$
    SELECT sha256(previous || convert_to(
        string_agg(verbatim_audit_value(value), '' ORDER BY position), 'UTF8'))
    FROM unnest(ARRAY[entry.chain::text, entry.n::text, entry.id::text,
                      (extract(epoch FROM entry.at) * 1000000)::bigint::text,
                      entry.actor, entry.action, entry.tenant_id, entry.subject, entry.detail::text])
         WITH ORDINALITY AS v (value, position)
$$;

-- Appends an entry to the chain of its process. Workers and commands, whose role owns the table, name it in a setting; the
-- conversation-api signs it for `verbatim_audit`. Any other session has a chain of its own: an injected statement names no
-- chain, so that it keeps no other session waiting.
CREATE FUNCTION verbatim_chain_audit_entry() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    last audit_chains;
BEGIN
    NEW.at := clock_timestamp();
    NEW.chain := coalesce(
        NEW.chain,
        CASE WHEN pg_has_role(session_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'MEMBER')
             THEN nullif(current_setting('verbatim.audit_chain', true), '')::uuid END,
        -- A later session with the same process id goes on with it: so there are few.
        md5(session_user || ' ' || pg_backend_pid())::uuid);
    INSERT INTO audit_chains AS c (chain, process, n, hash)
    VALUES (NEW.chain, current_setting('application_name'), 0, '')
    ON CONFLICT (chain) DO NOTHING;
    -- Locked until the transaction ends: no other transaction takes the same number.
    SELECT * INTO STRICT last FROM audit_chains c WHERE c.chain = NEW.chain FOR UPDATE;
    NEW.n := last.n + 1;
    NEW.hash := verbatim_audit_hash(last.hash, NEW);
    UPDATE audit_chains c SET n = NEW.n, hash = NEW.hash WHERE c.chain = NEW.chain;
    RETURN NEW;
END $$;

CREATE TRIGGER chain_entry BEFORE INSERT ON audit_log
FOR EACH ROW EXECUTE FUNCTION verbatim_chain_audit_entry();

-- Nobody changes or removes an entry by mistake. Whoever owns the tables may remove these triggers: that is what the
-- chains and the checkpoints show.
CREATE FUNCTION verbatim_refuse_audit_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
FOR EACH STATEMENT EXECUTE FUNCTION verbatim_refuse_audit_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_checkpoints
FOR EACH STATEMENT EXECUTE FUNCTION verbatim_refuse_audit_change();

-- Entries that the conversation-api writes about reads. The role of the API may not insert into the table. The API signs the
-- chain of its process, and tenants as for `verbatim.tenant`: an injected statement has no signature of a chain, so it
-- writes no entry, and locks no chain. A chain is signed after a line feed, which no tenant has in its name. An entry whose
-- tenant is empty is about no tenant.
CREATE FUNCTION verbatim_audit(signed_chain text, actors text[], actions text[], signed_tenants text[], subjects text[],
                               details text[])
RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$
DECLARE
    signed CONSTANT text := verbatim_signed_tenant(signed_chain);
    written bigint;
BEGIN
    IF NOT starts_with(signed, E'audit chain\n') THEN
        RAISE EXCEPTION 'verbatim_audit: the first argument signs no chain' USING ERRCODE = 'insufficient_privilege';
    END IF;
    INSERT INTO audit_log (chain, actor, action, tenant_id, subject, detail)
    SELECT split_part(signed, E'\n', 2)::uuid, e.actor, e.action, nullif(t.tenant, ''), e.subject, e.detail::json
    FROM unnest(actors, actions, signed_tenants, subjects, details)
         WITH ORDINALITY AS e (actor, action, signed_tenant, subject, detail, position)
    JOIN (SELECT s.signed_tenant, verbatim_signed_tenant(s.signed_tenant) AS tenant
          FROM (SELECT DISTINCT unnest(signed_tenants) AS signed_tenant) AS s) AS t USING (signed_tenant)
    ORDER BY e.position;
    GET DIAGNOSTICS written = ROW_COUNT;
    RETURN written;
END $$;

REVOKE ALL ON FUNCTION verbatim_audit_value(text), verbatim_audit_hash(bytea, audit_log), verbatim_chain_audit_entry(),
                       verbatim_refuse_audit_change(), verbatim_audit(text, text[], text[], text[], text[], text[])
FROM PUBLIC;

DO $$
DECLARE
    function regprocedure;
BEGIN
    FOREACH function IN ARRAY ARRAY['verbatim_chain_audit_entry()',
                                    'verbatim_audit(text, text[], text[], text[], text[], text[])']::regprocedure[] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog, %I, pg_temp', function, current_schema());
    END LOOP;
END $$;

-- What operators do over HTTP is written with the change, in the same statement.
ALTER TABLE audit_log ENABLE ROW LEVEL SECURITY;
CREATE POLICY entries_of_the_tenant ON audit_log FOR INSERT
WITH CHECK ((SELECT verbatim_tenant()) IN (tenant_id, ''));
