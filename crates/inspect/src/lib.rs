//! Looking into a running fleet: verifying what is stored, and tracing what happened to a message.
//!
//! Nothing here takes part in saving or closing. Only a requested repair writes, and it marks rows as stale, so
//! that the fleet corrects them in its ordinary way.

#[cfg(test)]
mod golden;
mod trace;
mod verify;

pub use trace::{
    HotCopyState, MatchKind, QueueBacklog, State, TraceEvent, TraceReport, TracedItem, Tracer,
};
pub use verify::{
    Finding, Incomplete, Kind, RepairOutcome, Repairs, Section, Verified, Verifier, VerifyProgress,
    VerifyingSettings,
};
