//! Every metric of the fleet: name, unit, labels and, as its doc comment, the help text.
//!
//! Names are stable: alerts, autoscalers and dashboards hang on them. There is no label for a tenant
//! or a conversation, and there cannot be one (see [`crate::Label`]). Metrics of shared things (a
//! queue's depth, dead letters, active conversations) are exported by every statistics replica:
//! rules use `max by`.

use domain::failure::{DeadLetterReason, Dependency};

use crate::definition::catalogue;
use crate::labels::{
    CloseCause, ConsumerRestart, Counted, DeadLetterState, DeliveryOutcome, GenerationChange,
    HotLoad, HotRead, PublishOutcome, QueueState, RerouteCause, RetryClass, SessionEventKind,
    TaskEnd, TransactionRetry,
};

/// Seconds. A batch takes some 20 ms here; lock waits and slow disks show from 0.5 s, time-outs of
/// the stores' clients lie at 5 to 30 s.
const WORK_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Seconds. Holds last as long as outages do: a failover takes seconds; after 300 s the channel is
/// given back.
const OUTAGE_SECONDS: &[f64] = &[0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];

/// Messages. Powers of two up to some multiples of the largest usual batch.
const MESSAGES: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];

catalogue! {
    /// What only grows. [`crate::Metrics::add`] adds to it.
    Counter Counter, CounterFamilies {
        /// Messages stored for the first time.
        MessagesSaved = "verbatim_messages_saved_total" in "messages";
        /// Messages that were stored already, with the same words.
        MessagesDuplicate = "verbatim_messages_duplicate_total" in "messages";
        /// Messages whose id was taken by other words; they became dead letters.
        MessagesConflict = "verbatim_messages_conflict_total" in "messages";
        /// Messages dropped because a tombstone is newer than they are.
        MessagesErased = "verbatim_messages_erased_total" in "messages";
        /// Messages without any id or timestamp. A crash may store them twice: their publisher
        /// should send a `message_id`.
        MessagesWithoutIdentity = "verbatim_messages_without_identity_total" in "messages";
        /// Deliveries settled, by what became of them.
        Deliveries { queue: &'static str, outcome: DeliveryOutcome }
            = "verbatim_deliveries_total" in "deliveries";
        /// Deliveries that the broker had delivered before.
        Redeliveries { queue: &'static str } = "verbatim_redeliveries_total" in "deliveries";
        /// Attempts that failed and are made again: of a whole batch (`unavailable`, a store was
        /// away) or of one message (`retryable`). Only the latter costs a message one of its
        /// attempts.
        Retries { queue: &'static str, class: RetryClass } = "verbatim_retries_total" in "attempts";
        /// Transactions that were done again in place, whole (`transient`: a deadlock, a lock) or in
        /// two halves (`split`: a message was refused, or all of it took too long).
        TransactionRetries { class: TransactionRetry }
            = "verbatim_transaction_retries_total" in "transactions";
        /// Deliveries whose acknowledgement could not be sent, because their channel had died. They
        /// come back and are recognised.
        AcksLost { queue: &'static str } = "verbatim_acks_lost_total" in "deliveries";
        /// Publishes, by what the broker said to them.
        Publishes { outcome: PublishOutcome } = "verbatim_publishes_total" in "messages";
        /// Batches held because a store was away.
        Holds { queue: &'static str, dependency: Dependency } = "verbatim_holds_total" in "batches";
        /// Consumers built anew, by cause.
        ConsumerRestarts { queue: &'static str, cause: ConsumerRestart }
            = "verbatim_consumer_restarts_total" in "restarts";
        /// Connections to RabbitMQ that consumers and publishers opened, the first one included.
        BrokerConnections = "verbatim_broker_connections_total" in "connections";
        /// Reads of hot copies, by what was found.
        HotReads { result: HotRead } = "verbatim_hot_reads_total" in "reads";
        /// Loads of hot copies, by how they ended.
        HotLoads { result: HotLoad } = "verbatim_hot_loads_total" in "loads";
        /// Conversations whose hot copies were made invalid, by cause.
        HotGenerationChanges { cause: GenerationChange }
            = "verbatim_hot_generation_changes_total" in "conversations";
        /// Changes of the hot epoch: Redis was found to be another server, or an older one.
        HotEpochChanges = "verbatim_hot_epoch_changes_total" in "changes";
        /// Session events applied.
        SessionEvents { event: SessionEventKind } = "verbatim_session_events_total" in "events";
        /// Conversations closed and archived, by cause.
        ConversationsClosed { cause: CloseCause }
            = "verbatim_conversations_closed_total" in "conversations";
        /// Conversations without a message that were due to close and were dropped.
        ConversationsDroppedEmpty = "verbatim_conversations_dropped_empty_total" in "conversations";
        /// Conversations that became active again after they had been archived.
        ConversationsReopened = "verbatim_conversations_reopened_total" in "conversations";
        /// Closings taken over from a process that had not finished them within its lease.
        CloseTakeovers = "verbatim_close_takeovers_total" in "conversations";
        /// Conversations whose statistics were computed.
        StatisticsRecomputed = "verbatim_statistics_recomputed_total" in "conversations";
        /// Daily buckets that were computed anew.
        DailyBucketsRecomputed = "verbatim_daily_buckets_recomputed_total" in "buckets";
        /// Dead letters stored by the dead-letter collector; a repeat of a stored one counts again.
        DeadLettersStored { queue: &'static str, reason: DeadLetterReason }
            = "verbatim_dead_letters_stored_total" in "dead letters";
        /// Dead letters that the dead-letter collector sent back to their queue, by cause.
        MessagesRerouted { queue: &'static str, cause: RerouteCause }
            = "verbatim_messages_rerouted_total" in "messages";
        /// Panics of handlers that the consumer contained; the messages at fault are retried.
        HandlerPanics { queue: &'static str } = "verbatim_handler_panics_total" in "panics";
        /// Panics, contained ones included, as the process's panic hook sees them. Each is a bug.
        Panics = "verbatim_panics_total" in "panics";
        /// Supervised tasks that ended although nobody had asked them to; they were started again.
        TaskRestarts { task: &'static str, cause: TaskEnd }
            = "verbatim_task_restarts_total" in "restarts";
    }
}

catalogue! {
    /// What has a value now. [`crate::Metrics::set`] sets it; it does not exist before.
    Gauge Gauge, GaugeFamilies {
        /// Messages in a queue. Those that are `ready` are the broker's count, which every
        /// statistics replica exports alike (`max by`); those that are `unacknowledged` are what
        /// this process holds (`sum by`).
        QueueMessages { queue: &'static str, state: QueueState }
            = "verbatim_queue_messages" in "messages";
        /// 1 while the queue is there, else 0: then `verbatim setup` is due, and the other gauges of
        /// the queue say 0.
        QueueExists { queue: &'static str } = "verbatim_queue_exists" in "0 or 1";
        /// Consumers of a queue, over all replicas.
        QueueConsumers { queue: &'static str } = "verbatim_queue_consumers" in "consumers";
        /// Dead letters that nobody has dealt with: open rows by reason, and those that the dead-letter collector
        /// has not read yet (`in_queue`).
        DeadLetters { queue: &'static str, reason: DeadLetterState } = "verbatim_dead_letters" in "dead letters";
        /// 1 while this process can use the store, else 0.
        DependencyUp { dependency: Dependency } = "verbatim_dependency_up" in "0 or 1";
        /// Conversations with status `active`.
        ConversationsActive = "verbatim_conversations_active" in "conversations";
        /// How long the conversation that is most overdue has waited for its close; 0 when none is.
        CloseLag = "verbatim_close_lag_seconds" in "seconds";
        /// When this replica last managed to count what the fleet shares, in seconds since 1970. What
        /// it did not count since then keeps its last value.
        CountedAt { what: Counted } = "verbatim_counted_timestamp_seconds" in "seconds";
        /// How many unacknowledged deliveries a consumer may hold.
        Prefetch { queue: &'static str } = "verbatim_prefetch" in "deliveries";
        /// 1 while the named check is ready, else 0; `/readyz` tells why.
        Ready { check: &'static str } = "verbatim_ready" in "0 or 1";
        /// Always 1; its labels tell what runs.
        BuildInfo { process: &'static str, version: &'static str } = "verbatim_build_info" in "1";
    }
}

catalogue! {
    /// How long something took. [`crate::Metrics::observe`] records it.
    Histogram Timing, TimingFamilies {
        /// From a batch's start to the outcomes of its messages, without holds.
        Batch { queue: &'static str } = "verbatim_batch_seconds" in "seconds", WORK_SECONDS;
        /// Holds that ended, by the store that was away.
        Hold { queue: &'static str, dependency: Dependency }
            = "verbatim_hold_seconds" in "seconds", OUTAGE_SECONDS;
        /// From a publish to the broker's confirm.
        Publish = "verbatim_publish_seconds" in "seconds", WORK_SECONDS;
        /// From the claim of a due conversation to its archived row, the rests between the steps included.
        Close = "verbatim_close_seconds" in "seconds", WORK_SECONDS;
    }
}

catalogue! {
    /// How many there were at once. [`crate::Metrics::measure`] records it.
    Histogram Size, SizeFamilies {
        /// Messages of a batch.
        Batch { queue: &'static str } = "verbatim_batch_messages" in "messages", MESSAGES;
    }
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
