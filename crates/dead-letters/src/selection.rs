//! Reading a selection page by page, and describing it.

use database::Selection;
use serde_json::{Value, json};

/// Dead letters read in one page; fewer if their bodies are large.
pub(crate) const PAGE: u32 = 16;

/// A selection as JSON for the audit log. Ids are only counted: each has its own line in the audit log.
pub(crate) fn describe_selection(selection: &Selection) -> Value {
    match selection {
        Selection::Ids(ids) => json!({"ids": ids.len()}),
        Selection::Matching(filter) => {
            let mut described = serde_json::to_value(filter).unwrap_or_default();
            if filter.error_contains.is_some() {
                described["error_contains"] = true.into();
            }
            described
        }
        Selection::All => json!("all"),
    }
}
