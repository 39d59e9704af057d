//! Every metric of the fleet: name, unit, labels and, as its doc comment, the help text.
//!
//! Names are stable: alerts, autoscalers and dashboards depend on them. No metric has a label for a
//! tenant or a conversation ([`crate::Label`] rules it out). Every replica of the dead-letter worker
//! exports the metrics of what the fleet shares (a queue's depth, dead letters, active
//! conversations): rules use `max by`.

use domain::failure::{DeadLetterReason, Dependency};

use crate::definition::{Definition, catalogue};
use crate::labels::{
    AnomalyKind, CloseCause, ConsumerRestart, Counted, DeadLetterState, DeliveryOutcome,
    EpochCause, GenerationChange, HotLoad, HotRead, HttpStatus, PublishOutcome, QueueState,
    ReadServer, RefusedCredential, ReplyOutcome, RerouteCause, RetryClass, SessionEventKind,
    SlowOutcome, SlowWork, SyncAlignment, TaskEnd, TransactionRetry,
};

/// Seconds. A batch takes some 20 ms; lock waits and slow disks show from 0.5 s; the timeouts of the
/// clients of PostgreSQL, Redis and RabbitMQ are 5 to 30 s.
const WORK_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Seconds. Holds last as long as outages do: a failover takes seconds; after 300 s of hold the
/// channel is closed, which requeues its deliveries.
const OUTAGE_SECONDS: &[f64] = &[0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];

/// Messages. Powers of two up to some multiples of the largest usual batch.
const MESSAGES: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];

catalogue! {
    /// A count that only grows. [`crate::Metrics::add`] adds to it.
    Counter Counter, CounterFamilies {
        /// Messages stored for the first time.
        MessagesSaved = "verbatim_messages_saved_total" in "messages";
        /// Messages that were stored already, with the same content.
        MessagesDuplicate = "verbatim_messages_duplicate_total" in "messages";
        /// Messages whose id is stored with different content; they became dead letters.
        MessagesConflict = "verbatim_messages_conflict_total" in "messages";
        /// Messages that were deleted by `conversation.delete_message`.
        MessagesDeleted = "verbatim_messages_deleted_total" in "messages";
        /// Messages dropped because they were deleted before, or their conversation or user was erased after they were
        /// sent.
        MessagesErased = "verbatim_messages_erased_total" in "messages";
        /// Messages with neither an id nor a timestamp. A redelivery after a crash may store such a
        /// message twice: the publisher should send a `message_id`.
        MessagesWithoutIdentity = "verbatim_messages_without_identity_total" in "messages";
        /// Messages saved with the time of their receipt, because they have neither a `timestamp` in the body nor
        /// AMQP's property. If several replicas receive messages of one conversation, their order is not certain.
        MessagesWithoutTimestamp = "verbatim_messages_without_timestamp_total" in "messages";
        /// Lists of `conversation.sync_messages`, by how they continue what is stored.
        Syncs { aligned: SyncAlignment } = "verbatim_sync_total" in "lists";
        /// Deliveries settled, by outcome.
        Deliveries { queue: &'static str, outcome: DeliveryOutcome }
            = "verbatim_deliveries_total" in "deliveries";
        /// Deliveries that RabbitMQ had delivered before (AMQP's flag `redelivered`).
        Redeliveries { queue: &'static str } = "verbatim_redeliveries_total" in "deliveries";
        /// Failures after which the work is tried again. `unavailable` counts batches, and uses up no
        /// attempt; `retryable` counts messages, and uses up one attempt of each.
        Retries { queue: &'static str, class: RetryClass } = "verbatim_retries_total" in "failures";
        /// Transactions that were retried at once: whole (`transient`: a deadlock or a serialisation
        /// failure) or in parts (`split`: PostgreSQL rejected a row, was too slow, or a row was locked).
        TransactionRetries { class: TransactionRetry }
            = "verbatim_transaction_retries_total" in "transactions";
        /// Deliveries whose acknowledgement could not be sent, because their channel had closed.
        /// RabbitMQ redelivers them, and they count as duplicates.
        AcksLost { queue: &'static str } = "verbatim_acks_lost_total" in "deliveries";
        /// Publishes, by outcome.
        Publishes { outcome: PublishOutcome } = "verbatim_publishes_total" in "messages";
        /// Replies to actions that have a reply address, by what became of them.
        Replies { outcome: ReplyOutcome } = "verbatim_replies_total" in "replies";
        /// Batches held because PostgreSQL was unavailable, or because RabbitMQ did not confirm a copy. With the
        /// value `redis` it stays 0: saving continues without Redis.
        Holds { queue: &'static str, dependency: Dependency } = "verbatim_holds_total" in "batches";
        /// Consumers restarted, by cause.
        ConsumerRestarts { queue: &'static str, cause: ConsumerRestart }
            = "verbatim_consumer_restarts_total" in "restarts";
        /// Connections to RabbitMQ that consumers and publishers opened, the first one included.
        BrokerConnections = "verbatim_broker_connections_total" in "connections";
        /// Reads of hot copies, by what was found.
        HotReads { result: HotRead } = "verbatim_hot_reads_total" in "reads";
        /// Loads of hot copies, by how they ended.
        HotLoads { result: HotLoad } = "verbatim_hot_loads_total" in "loads";
        /// Conversations whose hot copies were invalidated, by cause.
        HotGenerationChanges { cause: GenerationChange }
            = "verbatim_hot_generation_changes_total" in "conversations";
        /// Changes of the hot epoch, by cause. Each invalidates all hot copies.
        HotEpochChanges { cause: EpochCause } = "verbatim_hot_epoch_changes_total" in "changes";
        /// Session events applied.
        SessionEvents { event: SessionEventKind } = "verbatim_session_events_total" in "events";
        /// Conversations closed and archived, by cause.
        ConversationsClosed { cause: CloseCause }
            = "verbatim_conversations_closed_total" in "conversations";
        /// Conversations closed and archived without messages, also counted by
        /// `verbatim_conversations_closed_total`. Their messages never arrived, or were overtaken by the close.
        ConversationsClosedEmpty = "verbatim_conversations_closed_empty_total" in "conversations";
        /// Conversations that became active again after they had been archived.
        ConversationsReopened = "verbatim_conversations_reopened_total" in "conversations";
        /// Closes taken over from a process that did not finish them within its lease.
        CloseTakeovers = "verbatim_close_takeovers_total" in "conversations";
        /// Closes and statistics that were handled apart, because they were too slow to be handled with others or a
        /// row was locked, by how that ended. Others do not wait for them.
        SlowWork { work: SlowWork, outcome: SlowOutcome } = "verbatim_slow_work_total" in "attempts";
        /// Conversations whose statistics were computed.
        StatisticsRecomputed = "verbatim_statistics_recomputed_total" in "conversations";
        /// Daily statistics that were recomputed: one bucket is a tenant's agent, model and day.
        DailyBucketsRecomputed = "verbatim_daily_buckets_recomputed_total" in "buckets";
        /// Archived conversations whose words were written, so that searches find them.
        WordsWritten = "verbatim_words_written_total" in "conversations";
        /// Dead letters stored by the dead-letter collector. One that arrives again, because its message was
        /// redelivered, counts each time. So the sum may be larger than the number of rows.
        DeadLettersStored { queue: &'static str, reason: DeadLetterReason }
            = "verbatim_dead_letters_stored_total" in "dead letters";
        /// Messages rerouted to their own queue, by cause.
        MessagesRerouted { queue: &'static str, cause: RerouteCause }
            = "verbatim_messages_rerouted_total" in "messages";
        /// Requests that expired in `conversation.context`, because no worker took them. Senders who want a reply got
        /// the error `unavailable`, or what is wrong with their request.
        RequestsExpired = "verbatim_requests_expired_total" in "requests";
        /// Panics of handlers that the consumer caught; the messages at fault are retried.
        HandlerPanics { queue: &'static str } = "verbatim_handler_panics_total" in "panics";
        /// Requests of the conversation-api, by endpoint and by how they were answered.
        HttpRequests { endpoint: &'static str, status: HttpStatus } = "verbatim_http_requests_total" in "requests";
        /// Requests of the conversation-api whose answers may be stale (statistics, lists of conversations), by the server
        /// that answered, and by why it was the primary.
        StaleReads { server: ReadServer } = "verbatim_stale_reads_total" in "requests";
        /// Requests of the conversation-api without a valid key, by what is wrong with it.
        RefusedCredentials { reason: RefusedCredential }
            = "verbatim_refused_credentials_total" in "requests";
        /// Anomalies of callers of the conversation-api, by kind; the log names the address or the key.
        Anomalies { kind: AnomalyKind } = "verbatim_anomalies_total" in "anomalies";
        /// Panics in this process, caught ones included. Each is a bug.
        Panics = "verbatim_panics_total" in "panics";
        /// Supervised tasks that ended without a shutdown and were restarted, by cause.
        TaskRestarts { task: &'static str, cause: TaskEnd }
            = "verbatim_task_restarts_total" in "restarts";
    }
}

catalogue! {
    /// A current value. [`crate::Metrics::set`] sets it; it is absent until then.
    Gauge Gauge, GaugeFamilies {
        /// Messages in a queue. `ready` is RabbitMQ's count, which every replica of the
        /// dead-letter-worker exports (use `max by`); `unacknowledged` is what this process holds (use `sum by`).
        QueueMessages { queue: &'static str, state: QueueState }
            = "verbatim_queue_messages" in "messages";
        /// 1 while the queue exists, else 0. At 0 the other gauges of the queue are 0 too; run
        /// `verbatim setup`.
        QueueExists { queue: &'static str } = "verbatim_queue_exists" in "0 or 1";
        /// Consumers of a queue, of all replicas together.
        QueueConsumers { queue: &'static str } = "verbatim_queue_consumers" in "consumers";
        /// Open dead letters: stored ones by reason, and, with the value `in_queue` of the label `reason`, those
        /// that still wait in the queue `<queue>.dlq` for the dead-letter collector.
        DeadLetters { queue: &'static str, reason: DeadLetterState } = "verbatim_dead_letters" in "dead letters";
        /// 1 while this process can use the dependency, else 0.
        DependencyUp { dependency: Dependency } = "verbatim_dependency_up" in "0 or 1";
        /// How stale an answer of the read replica may be: the age of the newest position of the primary that it has
        /// replayed. Infinite while that is unknown. It grows while the primary or the replica does not answer. Only with
        /// `API_DATABASE_READ_URL`.
        ReadReplicaLag = "verbatim_read_replica_lag_seconds" in "seconds";
        /// 1 while this process uses its read replica, else 0; the log says why. Only with `API_DATABASE_READ_URL`.
        ReadReplicaUsed = "verbatim_read_replica_used" in "0 or 1";
        /// Conversations with status `active`.
        ConversationsActive = "verbatim_conversations_active" in "conversations";
        /// By how much the most overdue close is late, after the grace period; 0 when none is overdue. Only
        /// conversations whose last session has closed count, until a closer claims them; not idle ones, and
        /// not closes that have begun.
        CloseLag = "verbatim_close_lag_seconds" in "seconds";
        /// How long the words of the archived conversation that waits longest have been due; 0 when none are. Until they
        /// are written, searches do not find it.
        WordsLag = "verbatim_words_lag_seconds" in "seconds";
        /// How old the last checkpoint of the audit log is, while entries wait for the next one; 0 while none wait. Until
        /// then a change of these entries may stay unnoticed.
        AuditCheckpointLag = "verbatim_audit_checkpoint_lag_seconds" in "seconds";
        /// When this replica last counted what the fleet shares, in seconds since 1970. Until the
        /// next count the gauges keep their values.
        CountedAt { what: Counted } = "verbatim_counted_timestamp_seconds" in "seconds";
        /// The prefetch: how many unacknowledged deliveries the consumer may hold.
        Prefetch { queue: &'static str } = "verbatim_prefetch" in "deliveries";
        /// When this process last refreshed the statistics, as a Unix time. It does so every
        /// `VERBATIM_STATISTICS_INTERVAL`, also when nothing is stale.
        StatisticsRefreshedAt = "verbatim_statistics_refreshed_timestamp_seconds" in "seconds";
        /// When the certificate that the conversation-api serves expires, as a Unix time. Absent without TLS.
        TlsCertificateExpires = "verbatim_tls_certificate_expires_timestamp_seconds" in "seconds";
        /// 1 while the readiness check passes, else 0; `/readyz` gives the reason. The checks are the servers,
        /// the queues that the process consumes, and `process`: it has started and is not stopping.
        Ready { check: &'static str } = "verbatim_ready" in "0 or 1";
        /// Always 1; its labels name the process and its version.
        BuildInfo { process: &'static str, version: &'static str } = "verbatim_build_info" in "1";
    }
}

catalogue! {
    /// How long something took. [`crate::Metrics::observe`] records it.
    Histogram Timing, TimingFamilies {
        /// From the start of a batch until every message has its outcome, without holds.
        Batch { queue: &'static str } = "verbatim_batch_seconds" in "seconds", WORK_SECONDS;
        /// Duration of ended holds, by the dependency that was unavailable.
        Hold { queue: &'static str, dependency: Dependency }
            = "verbatim_hold_seconds" in "seconds", OUTAGE_SECONDS;
        /// From a publish to RabbitMQ's confirm.
        Publish = "verbatim_publish_seconds" in "seconds", WORK_SECONDS;
        /// From the headers of a request to the conversation-api until its answer is ready to be sent.
        HttpRequest { endpoint: &'static str } = "verbatim_http_request_seconds" in "seconds", WORK_SECONDS;
        /// From the claim of a due conversation until its row is archived, with the waits between the steps.
        Close = "verbatim_close_seconds" in "seconds", WORK_SECONDS;
    }
}

catalogue! {
    /// A number of things handled together. [`crate::Metrics::measure`] records it.
    Histogram Size, SizeFamilies {
        /// Messages in a batch.
        Batch { queue: &'static str } = "verbatim_batch_messages" in "messages", MESSAGES;
    }
}

/// The definition of every metric, in the order of the documentation.
#[must_use]
pub fn definitions() -> Vec<&'static Definition> {
    [Counter::DEFINITIONS, Gauge::DEFINITIONS, Timing::DEFINITIONS, Size::DEFINITIONS]
        .into_iter()
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use crate::{Kind, definitions};

    #[test]
    fn names_are_unique_and_end_in_their_unit() {
        let mut seen = HashSet::new();
        for definition in definitions() {
            let name = definition.name;
            assert!(seen.insert(name), "{name} is there twice");
            assert!(name.starts_with("verbatim_"), "{name}");
            let total = name.ends_with("_total");
            assert_eq!(total, definition.kind == Kind::Counter, "{name}");
            assert_eq!(name.ends_with("_seconds"), definition.unit == "seconds", "{name}");
        }
    }

    #[test]
    fn help_texts_are_sentences() {
        for definition in definitions() {
            let help = definition.help;
            assert!(help.starts_with(' ') && help.ends_with('.'), "{}: {help:?}", definition.name);
        }
    }

    #[test]
    fn histograms_alone_have_buckets_and_they_ascend() {
        for definition in definitions() {
            let buckets = definition.buckets;
            assert_eq!(buckets.is_empty(), definition.kind != Kind::Histogram);
            assert!(buckets.is_sorted_by(|a, b| a < b), "{}", definition.name);
        }
    }
}
