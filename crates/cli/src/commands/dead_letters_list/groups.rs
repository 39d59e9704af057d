//! Groups of dead letters with the same queue, reason, field and error.

use database::DeadLetterGroup;
use serde::Serialize;

use crate::output::{Cell, ERROR, Text, Tone, ago, count, excerpt, plural};

#[derive(Debug, Serialize)]
pub(super) struct Groups {
    /// Dead letters that match.
    pub(super) total: u64,
    pub(super) groups: Vec<DeadLetterGroup>,
}

/// The groups as a table, and the next commands for the largest.
pub(super) fn text(found: &Groups, limit: u32, out: &mut Text) {
    let Some(largest) = found.groups.first() else {
        return out.line(Tone::Good, "no dead letters match");
    };
    let now = out.now;
    let row = |group: &DeadLetterGroup| {
        [
            Cell::count(group.dead_letters).tone(Tone::Bad),
            Cell::count(group.tenants),
            Cell::count(group.failed_again),
            (&group.queue).into(),
            (&group.reason).into(),
            Cell::optional(group.field.as_deref()),
            ago(group.first_failed_at, now).into(),
            ago(group.last_failed_at, now).into(),
            excerpt(&group.error, ERROR).into(),
        ]
    };
    let titles = [
        "dead letters",
        "tenants",
        "failed again",
        "queue",
        "reason",
        "field",
        "first failed",
        "last failed",
        "error",
    ];
    out.table(titles, found.groups.iter().map(row));
    let shown = found.groups.len() as u64;
    let groups = if shown == u64::from(limit) {
        format!("the {} largest groups; --limit shows more", count(shown))
    } else {
        plural(shown, "group")
    };
    out.push(format!("\n{}, {groups}\n", plural(found.total, "dead letter")));
    let field = largest.field.as_deref().filter(|field| is_plain(field));
    let field = field.map(|field| format!(" --field {field}")).unwrap_or_default();
    let (queue, reason) = (&largest.queue, &largest.reason);
    for command in [
        format!("verbatim dead-letters show {}", largest.example),
        format!("verbatim dead-letters replay --queue {queue} --reason {reason}{field} --dry-run"),
    ] {
        out.push("  ");
        out.line(Tone::Dim, command);
    }
}

/// Whether a shell needs no quotes for it.
fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'))
}

#[cfg(test)]
mod tests {
    use database::DeadLetterGroup;
    use uuid::Uuid;

    use super::*;
    use crate::commands::conversation_list::tests::at;
    use crate::output::tests::plain;

    #[test]
    fn groups_are_listed_with_counts_and_next_commands() {
        let group =
            |dead_letters, reason: &str, field: Option<&str>, error: &str| DeadLetterGroup {
                queue: "conversation.save_message".to_owned(),
                reason: reason.to_owned(),
                field: field.map(str::to_owned),
                error: error.to_owned(),
                dead_letters,
                tenants: 3,
                failed_again: 1,
                first_failed_at: at("2026-11-20T09:59:00Z"),
                last_failed_at: at("2026-11-20T11:59:00Z"),
                example: Uuid::from_u128(7),
            };
        let role = "`role` must be a role, but is the string \"…\"; did you mean `assistant`?";
        let found = Groups {
            total: 10_002,
            groups: vec![
                group(10_000, "schema", Some("role"), role),
                group(2, "malformed_json", None, "the body is not UTF-8 at byte #"),
            ],
        };
        insta::assert_snapshot!(plain(|out| text(&found, 50, out)));
        let nothing = Groups { total: 0, groups: Vec::new() };
        assert_eq!(plain(|out| text(&nothing, 50, out)), "no dead letters match\n");
    }
}
