//! Groups of dead letters with the same queue, reason, field and error.

use database::DeadLetterGroup;
use serde::Serialize;

use crate::output::{Cell, Side, Table, TextStyle, Tone, ago, count, excerpt, plural};

/// Dead letters grouped by queue, reason, field and error.
#[derive(Debug, Serialize)]
pub(super) struct Groups {
    /// Dead letters that match.
    pub(super) total: u64,
    pub(super) groups: Vec<DeadLetterGroup>,
}

/// Characters of an error that a list shows; `show` has all of it.
pub(super) const ERROR: usize = 120;

/// The groups as a table, and the next commands for the largest.
pub(super) fn text(found: &Groups, limit: u32, style: &TextStyle) -> String {
    let paint = style.paint;
    let Some(largest) = found.groups.first() else {
        return format!("{}\n", paint.text(Tone::Good, "no dead letters match"));
    };
    let mut table = Table::new([
        ("dead letters", Side::Right),
        ("tenants", Side::Right),
        ("failed again", Side::Right),
        ("queue", Side::Left),
        ("reason", Side::Left),
        ("field", Side::Left),
        ("first failed", Side::Left),
        ("last failed", Side::Left),
        ("error", Side::Left),
    ]);
    for group in &found.groups {
        table.row([
            Cell::new(Tone::Bad, count(group.dead_letters)),
            count(group.tenants).into(),
            count(group.failed_again).into(),
            (&group.queue).into(),
            (&group.reason).into(),
            Cell::optional(group.field.as_deref()),
            ago(group.first_failed_at, style.now).into(),
            ago(group.last_failed_at, style.now).into(),
            excerpt(&group.error, ERROR).into(),
        ]);
    }
    let mut out = table.render(paint);
    let shown = found.groups.len() as u64;
    let groups = if shown == u64::from(limit) {
        format!("the {} largest groups; --limit shows more", count(shown))
    } else {
        plural(shown, "group")
    };
    out.push_str(&format!("\n{}, {groups}\n", plural(found.total, "dead letter")));
    let field = largest.field.as_deref().filter(|field| is_plain(field));
    let field = field.map(|field| format!(" --field {field}")).unwrap_or_default();
    let (queue, reason) = (&largest.queue, &largest.reason);
    for command in [
        format!("verbatim dead-letters show {}", largest.example),
        format!("verbatim dead-letters replay --queue {queue} --reason {reason}{field} --dry-run"),
    ] {
        out.push_str(&format!("  {}\n", paint.text(Tone::Dim, &command)));
    }
    out
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
    use crate::commands::dead_letters_list::tests::style;

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
        insta::assert_snapshot!(text(&found, 50, &style()));
        let nothing = Groups { total: 0, groups: Vec::new() };
        assert_eq!(text(&nothing, 50, &style()), "no dead letters match\n");
    }
}
