//! The status of a conversation.

use serde::{Deserialize, Serialize};

use crate::named::named;

named! {
    /// The status of a conversation. The names are stored and published: they never change.
    #[derive(Serialize, Deserialize, schemars::JsonSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum ConversationStatus {
        /// Open for messages.
        Active = "active",
        /// A close is in progress: tokens are counted, the hot copy is dropped, the event is published.
        Closing = "closing",
        /// Closed. A later message makes it active again.
        Archived = "archived",
    }
}
