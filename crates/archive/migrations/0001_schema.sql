-- The archive's public schema: analysts query it, so names are stable and columns are only added.
--
-- Ids are `text COLLATE "C"`: they compare by bytes, as they do in Redis and in the workers.
-- What a client wrote as JSON is `json`, not `jsonb`: it is kept to the letter.

CREATE TABLE conversations (
    tenant_id          text COLLATE "C" NOT NULL,
    id                 text COLLATE "C" NOT NULL,
    session_id         text COLLATE "C" NOT NULL,
    agent_id           text COLLATE "C",
    user_id            text COLLATE "C",
    model_name         text,
    tenant_tier        text,
    status             text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'closing', 'archived')),
    -- Counted from the rows when the conversation closes; null until then.
    message_count      bigint,
    total_tokens       bigint,
    created_at         timestamptz NOT NULL,
    -- Exact once archived; before that it lags by at most the coarseness of the activity time.
    last_message_at    timestamptz,
    -- Null: nobody has asked. The grace period runs from here, by this server's clock.
    close_requested_at timestamptz,
    closed_at          timestamptz,
    finalised_at       timestamptz,
    close_reason       text,
    -- Who is closing, until when. A new message clears it, and the closer's later writes miss.
    close_token        uuid,
    close_lease_until  timestamptz,
    satisfaction       smallint CHECK (satisfaction BETWEEN 1 AND 5),
    satisfaction_at    timestamptz,
    -- Random, fresh at every change: a hot copy counts only under exactly this number.
    hot_generation     bigint NOT NULL,
    erased_at          timestamptz,
    metadata           json,
    -- When a message last arrived, by this server's clock, coarsely: what the idle sweep goes by.
    touched_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The `finalised_at` for which statistics exist; null when something else made them stale.
    stats_from         timestamptz,
    -- A message came after archiving, and `conversation.reopened` has not been published yet.
    reopened           boolean NOT NULL DEFAULT false,
    PRIMARY KEY (tenant_id, id)
);

CREATE INDEX conversations_by_session ON conversations (tenant_id, session_id);
CREATE INDEX conversations_by_agent ON conversations (tenant_id, agent_id, created_at);
CREATE INDEX conversations_by_date ON conversations (tenant_id, created_at);
-- The work lists of the sweeps; each holds only what is still to be done.
CREATE INDEX conversations_due ON conversations (close_requested_at)
    WHERE status = 'active' AND close_requested_at IS NOT NULL;
CREATE INDEX conversations_idle ON conversations (touched_at)
    WHERE status = 'active' AND close_requested_at IS NULL;
CREATE INDEX conversations_closing ON conversations (close_lease_until) WHERE status = 'closing';
CREATE INDEX conversations_without_stats ON conversations (finalised_at)
    WHERE status = 'archived' AND finalised_at IS DISTINCT FROM stats_from;
CREATE INDEX conversations_reopened ON conversations (tenant_id, id) WHERE reopened;

CREATE TABLE sessions (
    tenant_id       text COLLATE "C" NOT NULL,
    conversation_id text COLLATE "C" NOT NULL,
    session_id      text COLLATE "C" NOT NULL,
    open            boolean NOT NULL,
    last_event_at   timestamptz NOT NULL,
    -- The close named no conversation: an open that was sent before it is over, wherever it comes.
    everywhere      boolean NOT NULL DEFAULT false,
    PRIMARY KEY (tenant_id, conversation_id, session_id)
);

CREATE INDEX sessions_open ON sessions (tenant_id, session_id) WHERE open;
CREATE INDEX sessions_over ON sessions (tenant_id, session_id) WHERE everywhere;

-- Rows are written once. The order of a conversation is (created_at, id).
CREATE TABLE messages (
    tenant_id          text COLLATE "C" NOT NULL,
    conversation_id    text COLLATE "C" NOT NULL,
    id                 text COLLATE "C" NOT NULL,
    role               text NOT NULL,
    -- Always text that people can read; `content_parts` holds the array where one was sent.
    content            text NOT NULL,
    content_parts      json,
    tool_calls         json,
    tool_call_id       text,
    tokens             bigint,
    tokens_estimate    bigint,
    user_id            text COLLATE "C",
    agent_id           text COLLATE "C",
    model_name         text,
    processing_time_ms double precision,
    created_at         timestamptz NOT NULL,
    received_at        timestamptz NOT NULL,
    -- Role, content, tool_calls and tool_call_id: what tells a duplicate from a conflict.
    body_hash          bytea NOT NULL,
    -- How `content`, `content_parts` and `tool_calls` are stored; 1 is plain.
    format             smallint NOT NULL DEFAULT 1,
    metadata           json,
    PRIMARY KEY (tenant_id, conversation_id, id)
);

CREATE INDEX messages_in_order ON messages (tenant_id, conversation_id, created_at, id);

CREATE TABLE conversation_stats (
    tenant_id            text COLLATE "C" NOT NULL,
    conversation_id      text COLLATE "C" NOT NULL,
    agent_id             text COLLATE "C",
    message_count        bigint NOT NULL,
    user_messages        bigint NOT NULL,
    assistant_messages   bigint NOT NULL,
    total_tokens         bigint NOT NULL,
    duration_seconds     double precision NOT NULL,
    -- From a user's message to the assistant's that follows it directly; null where there is none.
    avg_response_seconds double precision,
    satisfaction         smallint,
    -- The conversation's `finalised_at` that these numbers are of.
    computed_from        timestamptz NOT NULL,
    computed_at          timestamptz NOT NULL,
    -- The UTC day on which the conversation began: its bucket in `daily_stats`.
    day                  date NOT NULL,
    PRIMARY KEY (tenant_id, conversation_id)
);

CREATE INDEX conversation_stats_by_day ON conversation_stats (tenant_id, coalesce(agent_id, ''), day);

CREATE TABLE daily_stats (
    tenant_id            text COLLATE "C" NOT NULL,
    -- Empty for conversations without an agent.
    agent_id             text COLLATE "C" NOT NULL,
    day                  date NOT NULL,
    conversations        bigint NOT NULL DEFAULT 0,
    messages             bigint NOT NULL DEFAULT 0,
    tokens               bigint NOT NULL DEFAULT 0,
    avg_duration_seconds double precision,
    avg_satisfaction     double precision,
    -- A conversation of this bucket changed after it was last computed.
    dirty                boolean NOT NULL DEFAULT true,
    PRIMARY KEY (tenant_id, agent_id, day)
);

CREATE INDEX daily_stats_dirty ON daily_stats (tenant_id, agent_id, day) WHERE dirty;

CREATE TABLE dead_letters (
    -- UUIDv5 of what makes it the same letter, so that keeping one twice keeps it once.
    id                uuid PRIMARY KEY,
    queue             text NOT NULL,
    reason            text NOT NULL,
    field             text,
    error             text NOT NULL,
    tenant_id         text COLLATE "C",
    conversation_id   text COLLATE "C",
    session_id        text COLLATE "C",
    message_id        text COLLATE "C",
    action_type       text,
    routing_key       text NOT NULL,
    exchange          text NOT NULL,
    body              bytea NOT NULL,
    properties        json NOT NULL,
    headers           json NOT NULL,
    attempts          integer NOT NULL,
    replay_count      integer NOT NULL,
    first_failed_at   timestamptz NOT NULL,
    last_failed_at    timestamptz NOT NULL,
    stored_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- How often the same letter came.
    copies            bigint NOT NULL DEFAULT 1,
    status            text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'replayed', 'discarded')),
    status_changed_at timestamptz,
    status_reason     text
);

CREATE INDEX dead_letters_open ON dead_letters (queue, reason) WHERE status = 'open';
CREATE INDEX dead_letters_by_time ON dead_letters (stored_at, id);
CREATE INDEX dead_letters_by_tenant ON dead_letters (tenant_id, stored_at);

CREATE TABLE bot_states (
    tenant_id  text COLLATE "C" NOT NULL,
    profile    text NOT NULL,
    key        text COLLATE "C" NOT NULL,
    version    bigint NOT NULL,
    value      json NOT NULL,
    updated_at timestamptz NOT NULL,
    expires_at timestamptz,
    PRIMARY KEY (tenant_id, profile, key)
);

CREATE TABLE audit_log (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor     text NOT NULL,
    action    text NOT NULL,
    tenant_id text COLLATE "C",
    subject   text,
    -- Never any words of a conversation.
    detail    json
);

CREATE INDEX audit_log_by_time ON audit_log (at);

-- What was erased and when: messages sent before `erased_at` are refused.
CREATE TABLE tombstones (
    tenant_id  text COLLATE "C" NOT NULL,
    kind       text NOT NULL CHECK (kind IN ('conversation', 'user')),
    subject    text COLLATE "C" NOT NULL,
    erased_at  timestamptz NOT NULL,
    applied_at timestamptz,
    PRIMARY KEY (tenant_id, kind, subject)
);

-- One row: which Redis the hot copies live in. A copy counts only under exactly this number.
CREATE TABLE hot_epoch (
    id    boolean PRIMARY KEY DEFAULT true CHECK (id),
    epoch bigint NOT NULL,
    -- The run and replication ids of the Redis masters that the epoch was made for.
    reign text NOT NULL
);

INSERT INTO hot_epoch (epoch, reign)
VALUES (('x' || substr(replace(gen_random_uuid()::text, '-', ''), 1, 16))::bit(64)::bigint, '');
