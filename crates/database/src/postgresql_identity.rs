//! Which PostgreSQL, in which state of its history, answers a statement.
//!
//! A number that was committed can be undone: by a failover to a standby that lacks the commit, by a
//! point-in-time recovery, by a restored dump. The first two begin a new timeline, whose number is in the
//! names of the WAL files. A dump restored elsewhere finds another system identifier; restored over its own
//! database it makes the table `hot_epoch` again, under another oid. `TRUNCATE` gives it another relfilenode.
//! The row of `hot_epoch` remembers all four. If they differ, the row describes another history.
//!
//! Every role may call the functions, unless an administrator revoked that (PostgreSQL's manual, "System
//! Administration Functions" and "Control Data Functions").

use std::fmt::Write as _;

/// The current identity, as an SQL expression; null on a standby. `e` is the row of `hot_epoch`. Its parts:
/// system identifier, timeline (8 hexadecimal digits), oid and relfilenode of `hot_epoch`.
///
/// The functions about WAL positions fail on a standby. On a primary, `pg_walfile_name` takes the timeline
/// that the server writes now. `pg_control_checkpoint` has that of the last checkpoint, which may be older.
pub(crate) const CURRENT: &str = "CASE WHEN NOT pg_is_in_recovery() THEN
    concat_ws(':', (pg_control_system()).system_identifier,
              left(pg_walfile_name(pg_current_wal_lsn()), 8),
              e.tableoid, pg_relation_filenode(e.tableoid)) END";

const NAMES: [&str; 4] =
    ["system identifier", "timeline", "oid of hot_epoch", "relfilenode of hot_epoch"];

/// Names the parts of two identities that differ, as in `timeline 1 → 2`.
pub(crate) fn differences(stored: &str, current: &str) -> String {
    let mut text = String::new();
    for ((name, stored), current) in NAMES.iter().zip(stored.split(':')).zip(current.split(':')) {
        if stored != current {
            let comma = if text.is_empty() { "" } else { ", " };
            let (stored, current) = (shown(name, stored), shown(name, current));
            write!(text, "{comma}{name} {stored} → {current}").ok();
        }
    }
    text
}

/// PostgreSQL's tools print timelines as decimal numbers.
fn shown(name: &str, part: &str) -> String {
    match u32::from_str_radix(part, 16) {
        Ok(timeline) if name == "timeline" => timeline.to_string(),
        _ => part.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_with_decimal_timelines() {
        let stored = "7713412774022703217:00000009:16999:16999";
        for (current, expected) in [
            ("7713412774022703217:00000009:16999:16999", ""),
            ("7713412774022703217:0000000A:16999:16999", "timeline 9 → 10"),
            (
                "7713412774022703217:00000009:17500:17501",
                "oid of hot_epoch 16999 → 17500, relfilenode of hot_epoch 16999 → 17501",
            ),
            (
                "7713412774022703218:00000001:16999:16999",
                "system identifier 7713412774022703217 → 7713412774022703218, timeline 9 → 1",
            ),
        ] {
            assert_eq!(differences(stored, current), expected);
        }
    }
}
