//! What verifying promises: every kind of damage is found and named, nothing is found after a repair, and work
//! in progress is not reported as damage.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod words;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use database::Scope;
use domain::failure::Dependency;
use domain::ids::TenantId;
use fixtures::{Replica, key, redis, refresh, sweep, to_save};
use inspect::{
    Finding, Incomplete, Kind, RepairOutcome, Repairs, Section, Verified, VerifyProgress,
};
use serde_json::json;
use world::{STORED, World, one, run};

/// The name of a session's copy in Redis.
fn name(session: &str) -> String {
    format!("messages:{{{}}}", key(session))
}

/// The score of the message of second `second` in a copy.
fn score(second: i64) -> String {
    let moment = domain::time::Timestamp::parse("2026-11-20T10:00:00Z").unwrap();
    (moment.micros() + second * 1_000_000).to_string()
}

#[tokio::test]
async fn servers_that_agree_have_no_findings() {
    World::with_copies().await.is_clean().await;
    World::archived().await.is_clean().await;
}

#[tokio::test]
async fn a_message_that_a_valid_copy_lacks_is_found_and_the_copy_invalidated() {
    let world = World::with_copies().await;
    let at = score(2);
    assert_eq!(redis(&world.env, &["ZREMRANGEBYSCORE", &name("s"), &at, &at]).await, 1);
    let found = one(&world.repaired(&STORED).await, Kind::HotCopyMissing, "s");
    assert_eq!(found.id.as_deref(), Some("m2"));
    world.is_clean().await;
    assert_eq!(fixtures::ids(&world.replica.read_both(&key("s"), 10).await), ["m1", "m2", "m3"]);
    world.is_clean().await;
    let audited =
        "SELECT concat_ws('|', actor, action, tenant_id, subject, detail->>'id') FROM audit_log";
    let conversation = key("s").conversation;
    let line = format!("the night shift|repair.invalidate_hot_copy|acme|{conversation}|m2");
    assert_eq!(world.sql(audited).await, line);
}

#[tokio::test]
async fn a_copy_with_many_mismatches_is_invalidated_once() {
    let world = World::with_copies().await;
    world.sql("UPDATE message_rows SET content = 'secret' WHERE id IN ('m1', 'm2')").await;
    let found = world.repaired(&[Section::HotCopies]).await;
    let ids: Vec<_> = found.iter().map(|it| it.id.as_deref().unwrap()).collect();
    assert_eq!(ids, ["m1", "m2"]);
    // One line for one generation: if it were set a second time, a copy that was loaded under it, and
    // invalidated since, would be valid again.
    let lines = "SELECT concat_ws('|', action, detail->>'id', detail->>'findings') FROM audit_log";
    assert_eq!(world.sql(lines).await, "repair.invalidate_hot_copy|m1|2");
    world.is_clean().await;
}

#[tokio::test]
async fn a_message_that_only_a_valid_copy_has_is_found() {
    let world = World::with_copies().await;
    world.sql("DELETE FROM message_rows WHERE id = 'm2'").await;
    let found = one(&world.repaired(&STORED).await, Kind::HotCopySurplus, "s");
    assert_eq!(found.id.as_deref(), Some("m2"));
    world.is_clean().await;
}

#[tokio::test]
async fn different_content_in_a_valid_copy_is_found_and_not_shown() {
    let world = World::with_copies().await;
    world.sql("UPDATE message_rows SET content = 'secret', model_name = 'm' WHERE id = 'm2'").await;
    let found = one(&world.repaired(&STORED).await, Kind::HotCopyDifferent, "s");
    assert_eq!(found.id.as_deref(), Some("m2"));
    assert_eq!(found.detail, "the valid hot copy differs in content, model_name");
    world.is_clean().await;
}

#[tokio::test]
async fn every_page_of_a_long_copy_is_compared_back_to_its_beginning() {
    let world = World::new().await;
    let at = |n: usize| format!("2026-11-20T10:{:02}:{:02}Z", n / 60, n % 60);
    let batch: Vec<_> = (0..1_200)
        .map(|n| to_save("s", &format!("m{n:04}"), &json!({"timestamp": at(n)})))
        .collect();
    for part in batch.chunks(400) {
        world.replica.save(part).await;
    }
    world.replica.read_both(&key("s"), 10).await;
    world.is_clean().await;
    // The copy holds the newest 1 000: one of them, and one that it need not have.
    world.sql("UPDATE message_rows SET content = '' WHERE id IN ('m0100', 'm0300')").await;
    let found = one(&world.findings(&[Section::HotCopies]).await, Kind::HotCopyDifferent, "s");
    assert_eq!(found.id.as_deref(), Some("m0300"));
}

#[tokio::test]
async fn a_copy_that_cannot_be_read_is_found_and_dropped() {
    let world = World::with_copies().await;
    assert_eq!(redis(&world.env, &["ZADD", &name("s"), "5", "rubbish"]).await, 1);
    one(&world.repaired(&STORED).await, Kind::HotCopyDamaged, "s");
    assert_eq!(redis(&world.env, &["EXISTS", &name("s")]).await, 0);
    world.is_clean().await;
}

#[tokio::test]
async fn a_copy_without_a_conversation_is_found_and_dropped() {
    let world = World::with_copies().await;
    let id = key("s").conversation;
    world
        .sql(&format!(
            "DELETE FROM message_rows WHERE conversation = (SELECT number FROM conversations WHERE id = '{id}');
             DELETE FROM conversations WHERE id = '{id}'"
        ))
        .await;
    one(&world.repaired(&STORED).await, Kind::HotCopyOrphaned, "s");
    assert_eq!(redis(&world.env, &["EXISTS", &name("s")]).await, 0);
    world.is_clean().await;
}

#[tokio::test]
async fn a_copy_that_readers_do_not_use_is_not_compared() {
    let world = World::with_copies().await;
    let at = score(2);
    redis(&world.env, &["ZREMRANGEBYSCORE", &name("s"), &at, &at]).await;
    world.sql("UPDATE conversations SET hot_generation = hot_generation + 1").await;
    world.is_clean().await;
}

#[tokio::test]
async fn a_close_that_no_closer_continues_is_found_and_made_due_again() {
    for lease in ["NULL", "now() - interval '5 min'"] {
        let world = World::with_messages().await;
        let id = key("s").conversation;
        world
            .sql(&format!(
                "UPDATE conversations SET status = 'closing', close_token = gen_random_uuid(),
                     close_lease_until = {lease}, touched_at = now() - interval '5 min'
                 WHERE id = '{id}'"
            ))
            .await;
        one(&world.repaired(&STORED).await, Kind::ClosingStuck, "s");
        world.fleet().await;
        assert_eq!(
            world.sql("SELECT count(*) FROM conversations WHERE status = 'archived'").await,
            "1"
        );
        world.is_clean().await;
    }
}

#[tokio::test]
async fn a_lease_that_has_just_ended_is_left_to_the_sweep() {
    let world = World::with_messages().await;
    world
        .sql(
            "UPDATE conversations SET status = 'closing', close_token = gen_random_uuid(),
                 close_lease_until = now() - interval '20 s'",
        )
        .await;
    world.is_clean().await;
}

#[tokio::test]
async fn closes_that_are_overdue_are_found_and_left_to_the_sweep() {
    let world = World::with_messages().await;
    world.sql("UPDATE conversations SET close_requested_at = now() - interval '80 s'").await;
    world.is_clean().await;
    for overdue in [
        "close_requested_at = now() - interval '100 s'",
        "close_requested_at = NULL, touched_at = now() - interval '33 min'",
    ] {
        world.sql(&format!("UPDATE conversations SET {overdue}")).await;
        let found = world.findings(&STORED).await;
        let kinds: Vec<_> = found.iter().map(|it| (it.kind, it.repair_outcome.clone())).collect();
        assert_eq!(kinds, vec![(Kind::CloseOverdue, RepairOutcome::NotRepairable); 2], "{found:?}");
    }
    world.fleet().await;
    world.is_clean().await;
}

#[tokio::test]
async fn totals_that_differ_from_the_messages_are_found_and_recounted() {
    let world = World::archived().await;
    let id = key("s").conversation;
    let right =
        world.sql(&format!("SELECT total_tokens FROM conversations WHERE id = '{id}'")).await;
    world
        .sql(&format!(
            "UPDATE conversations SET message_count = 7, total_tokens = 1 WHERE id = '{id}'"
        ))
        .await;
    let found = one(&world.repaired(&STORED).await, Kind::TotalsDiffer, "s");
    assert!(found.detail.contains("message_count is 7, should be 3"), "{found:?}");
    assert!(found.detail.contains(&format!("total_tokens is 1, should be {right}")), "{found:?}");
    world.fleet().await;
    world.is_clean().await;
    let totals =
        format!("SELECT status, message_count, total_tokens FROM conversations WHERE id = '{id}'");
    assert_eq!(world.sql(&totals).await, format!("archived|3|{right}"));
}

#[tokio::test]
async fn an_archived_conversation_without_its_messages_is_found_and_never_dropped() {
    let world = World::archived().await;
    let id = key("s").conversation;
    world
        .sql(&format!(
            "DELETE FROM message_rows WHERE conversation = (SELECT number FROM conversations WHERE id = '{id}')"
        ))
        .await;
    let actor = Repairs::By("me".to_owned());
    let sections = [Section::Conversations];
    let (found, _) = run(&world.verifier(actor), &Scope::default(), &sections).await;
    assert_eq!(one(&found, Kind::MessagesGone, "s").repair_outcome, RepairOutcome::NotRepairable);
    one(&world.repaired(&[Section::Words]).await, Kind::WordsDiffer, "s");
    world.fleet().await;
    assert_eq!(world.sql("SELECT count(*) FROM conversations").await, "2");
}

#[tokio::test]
async fn messages_that_cannot_be_read_are_found() {
    let world = World::archived().await;
    world.sql("UPDATE message_rows SET role = 'bard' WHERE id = 'm2'").await;
    let found = world.findings(&[Section::Conversations]).await;
    let found: Vec<_> =
        found.into_iter().filter(|it| it.kind == Kind::MessagesUnreadable).collect();
    assert_eq!(one(&found, Kind::MessagesUnreadable, "s").detail, "1 of 3 messages");
    let world = World::with_copies().await;
    world.sql("UPDATE message_rows SET role = 'bard' WHERE id = 'm2'").await;
    let (found, ended) =
        run(&world.verifier(Repairs::None), &Scope::default(), &[Section::HotCopies]).await;
    let found = one(&found, Kind::MessagesUnreadable, "s");
    assert!(found.detail.contains("unknown role"), "{found:?}");
    assert_eq!(ended[0].incomplete, None);
}

#[tokio::test]
async fn statistics_of_a_conversation_that_are_wrong_or_missing_are_found_and_recomputed() {
    let world = World::archived().await;
    let id = key("s").conversation;
    for (damage, detail) in [
        (
            "UPDATE conversation_stats SET user_messages = 9, duration_seconds = 2.5",
            "user_messages is 9, should be 3",
        ),
        ("DELETE FROM conversation_stats", "no row in conversation_stats"),
    ] {
        world.sql(&format!("{damage} WHERE conversation_id = '{id}'")).await;
        let found = world.repaired(&[Section::Conversations]).await;
        assert!(one(&found, Kind::StatisticsDiffer, "s").detail.contains(detail), "{found:?}");
        world.fleet().await;
        world.is_clean().await;
    }
    assert_eq!(world.sql("SELECT sum(user_messages) FROM conversation_stats").await, "5");
}

#[tokio::test]
async fn a_day_that_is_wrong_or_missing_is_found_and_recomputed() {
    let world = World::archived().await;
    world.sql("UPDATE daily_stats SET messages = 99, avg_duration_seconds = 7").await;
    let found = world.repaired(&STORED).await;
    let [finding] = &found[..] else { panic!("{found:?}") };
    assert_eq!(
        (finding.kind, finding.id.as_deref()),
        (Kind::DayDiffers, Some("2026-11-20 (no agent) (no model)"))
    );
    assert!(finding.detail.contains("messages is 99, should be 5"), "{finding:?}");
    world.fleet().await;
    world.is_clean().await;

    world.sql("DELETE FROM daily_stats").await;
    let found = world.repaired(&STORED).await;
    let details: Vec<_> = found.iter().map(|it| (it.kind, &*it.detail)).collect();
    assert_eq!(details, [(Kind::StatisticsDiffer, "no row of its day in daily_stats"); 2]);
    world.fleet().await;
    world.is_clean().await;
}

#[tokio::test]
async fn a_wrong_response_time_is_found_and_recomputed() {
    let world = World::new().await;
    let at = |id: &str, role: &str, second: u8| {
        let time = format!("2026-11-20T10:00:0{second}Z");
        let fields = json!({
            "role": role, "timestamp": time, "agent_id": "ada", "model_name": "gpt-5",
        });
        to_save("s", id, &fields)
    };
    world.replica.save(&[at("m1", "user", 1), at("m2", "assistant", 5)]).await;
    world.sql("UPDATE conversations SET close_requested_at = now()").await;
    world.fleet().await;
    for (damage, kind, detail) in [
        (
            "UPDATE daily_stats SET avg_response_seconds = 9",
            Kind::DayDiffers,
            "avg_response_seconds is 9, should be 4",
        ),
        ("UPDATE daily_stats SET responses = 9", Kind::DayDiffers, "responses is 9, should be 1"),
        ("UPDATE daily_stats SET ratings = 9", Kind::DayDiffers, "ratings is 9, should be 0"),
        (
            "UPDATE conversation_stats SET responses = 2",
            Kind::StatisticsDiffer,
            "responses is 2, should be 1",
        ),
    ] {
        world.sql(damage).await;
        let found = world.repaired(&STORED).await;
        let finding = found.iter().find(|it| it.kind == kind).unwrap();
        assert!(finding.detail.contains(detail), "{finding:?}");
        if kind == Kind::DayDiffers {
            assert_eq!(finding.id.as_deref(), Some("2026-11-20 ada gpt-5"));
        }
        world.fleet().await;
        world.is_clean().await;
    }
    let times = "SELECT s.avg_response_seconds, d.avg_response_seconds
                 FROM conversation_stats s, daily_stats d";
    assert_eq!(world.sql(times).await, "4|4");
}

#[tokio::test]
async fn the_row_of_a_model_that_is_missing_is_found_although_its_agent_has_others() {
    let world = World::new().await;
    for (session, model) in [("s", "gpt-5"), ("t", "claude")] {
        let fields = json!({"agent_id": "ada", "model_name": model});
        world.replica.save(&[to_save(session, "m1", &fields)]).await;
    }
    world.sql("UPDATE conversations SET close_requested_at = now()").await;
    world.fleet().await;
    world.sql("DELETE FROM daily_stats WHERE model_name = 'gpt-5'").await;
    let found = world.repaired(&STORED).await;
    let finding = one(&found, Kind::StatisticsDiffer, "s");
    assert_eq!(finding.detail, "no row of its day in daily_stats");
    world.fleet().await;
    world.is_clean().await;
    assert_eq!(world.sql("SELECT count(*) FROM daily_stats").await, "2");
}

#[tokio::test]
async fn statistics_that_are_not_computed_are_found() {
    let mut world = World::archived().await;
    world.overdue_after = Duration::from_millis(100);
    world
        .sql(
            "UPDATE conversations SET stats_from = NULL, finalised_at = now() - interval '1 hour';
             INSERT INTO words_due SELECT finalised_at, tenant_id, id FROM conversations;
             UPDATE daily_stats SET dirty = true",
        )
        .await;
    let found = world.findings(&[Section::Conversations, Section::Days]).await;
    let kinds: Vec<_> = found.iter().map(|it| it.kind).collect();
    assert_eq!(kinds, [Kind::StatisticsOverdue, Kind::StatisticsOverdue, Kind::DayOverdue]);
    world.fleet().await;
    world.is_clean().await;
}

#[tokio::test]
async fn an_agent_that_a_late_event_names_makes_the_statistics_stale() {
    let world = World::archived().await;
    let late = json!({
        "action_type": "conversation.session_closed", "tenant_id": "acme", "session_id": "s",
        "timestamp": "2026-11-20T11:00:00Z", "agent_id": "ada",
    });
    world.replica.sessions.record(&[fixtures::action(&late)]).await.unwrap();
    world.fleet().await;
    world.is_clean().await;
    assert_eq!(world.sql("SELECT max(agent_id) FROM conversation_stats").await, "ada");
}

#[tokio::test]
async fn orphaned_rows_are_found() {
    let world = World::archived().await;
    world
        .sql(
            "INSERT INTO message_rows (conversation, id, role, content, created_at, received_at, body_hash)
                 SELECT 4711, id, role, content, created_at, received_at, body_hash FROM message_rows
                 WHERE id IN ('m1', 'm2');
             INSERT INTO conversation_stats SELECT (jsonb_populate_record(s, '{\"conversation_id\": \"gone\"}')).*
                 FROM conversation_stats s LIMIT 1;
             UPDATE daily_stats SET dirty = true",
        )
        .await;
    refresh(&world.replica.statistics).await;
    let actor = Repairs::By("me".to_owned());
    let (found, _) = run(&world.verifier(actor), &Scope::default(), &STORED).await;
    let kinds: Vec<_> =
        found.iter().map(|it| (it.kind, it.id.as_deref(), &it.repair_outcome)).collect();
    let expected = [
        (Kind::StatisticsOrphaned, None, &RepairOutcome::Done),
        (Kind::MessagesOrphaned, Some("m1"), &RepairOutcome::NotRepairable),
    ];
    assert_eq!(kinds, expected, "{found:?}");
    world.sql("DELETE FROM message_rows WHERE conversation = 4711").await;
    world.fleet().await;
    world.is_clean().await;
    assert_eq!(world.sql("SELECT conversations FROM daily_stats").await, "2");
}

#[tokio::test]
async fn queues_that_differ_and_messages_without_a_consumer_are_found() {
    let world = World::new().await;
    assert_eq!(world.findings(&[Section::Queues]).await, []);
    let (management, host) = (world.env.management(), &world.env.name);
    let publish = async |queue: &str| {
        let body = json!({
            "properties": {}, "routing_key": queue, "payload": "{}", "payload_encoding": "string",
        });
        let path = format!("/api/exchanges/{host}/amq.default/publish");
        let reply = management.request("POST", &path, &body.to_string()).await.unwrap();
        assert_eq!(reply, r#"{"routed":true}"#, "{queue}");
    };
    for queue in [
        "conversation.save_message",
        "conversation.save_message.dlq",
        "conversation.session.suspect",
        "domain.unrouted",
    ] {
        publish(queue).await;
    }
    management.request("DELETE", &format!("/api/queues/{host}/bot.state"), "").await.unwrap();
    let mut found = world.findings(&[Section::Queues]).await;
    found.sort_by_key(|finding| finding.kind);
    let kinds: Vec<_> = found.iter().map(|it| (it.kind, it.id.as_deref().unwrap())).collect();
    let expected = [
        (Kind::TopologyDiffers, "bot.state"),
        (Kind::DeadLettersWaiting, "conversation.save_message.dlq"),
        (Kind::UnroutedWaiting, "domain.unrouted"),
        (Kind::SuspectsWaiting, "conversation.session.suspect"),
        (Kind::WorkWithoutConsumers, "conversation.save_message"),
    ];
    assert_eq!(kinds, expected, "{found:?}");
}

#[tokio::test]
async fn only_what_the_filters_select_is_checked() {
    let world = World::archived().await;
    world.sql("UPDATE conversations SET message_count = 7").await;
    let found = async |scope: Scope| run(&world.verifier(Repairs::None), &scope, &STORED).await.0;
    assert_eq!(found(Scope::default()).await.len(), 2);
    let tenant =
        |name: &str| Scope { tenant: Some(TenantId::new(name).unwrap()), ..Scope::default() };
    assert_eq!(found(tenant("acme")).await.len(), 2);
    assert_eq!(found(tenant("umbrella")).await, []);
    let conversation = Some(key("t").conversation);
    one(&found(Scope { conversation, ..Scope::default() }).await, Kind::TotalsDiffer, "t");
    let since = Some(domain::time::Timestamp::LATEST);
    assert_eq!(found(Scope { since, ..Scope::default() }).await, []);
}

#[tokio::test]
async fn an_unavailable_server_ends_its_section_and_no_other() {
    let world = World::archived().await;
    world.sql("UPDATE conversations SET message_count = 7").await;
    let verifier = world.verifier_at("redis://127.0.0.1:9/0", Repairs::None);
    let (found, ended) = run(&verifier, &Scope::default(), &STORED).await;
    assert_eq!(found.len(), 2, "{found:?}");
    let unavailable = |section: &Verified| match section.incomplete {
        Some(Incomplete::Unavailable { dependency, .. }) => Some(dependency),
        _ => None,
    };
    let dependencies: Vec<_> = ended.iter().map(unavailable).collect();
    assert_eq!(dependencies, [Some(Dependency::Redis), None, None, None, None], "{ended:?}");
    assert_eq!(ended[1].checked, 2);
}

/// Verifies a section; runs a statement on PostgreSQL at a step of that.
async fn run_with(
    world: &World,
    sections: &[Section],
    at: fn(VerifyProgress<'_>) -> bool,
    statement: &str,
) -> (Vec<Finding>, Vec<Verified>) {
    let mut found = Vec::new();
    let (verifier, scope) = (world.verifier(Repairs::None), Scope::default());
    let mut report = |progress: VerifyProgress<'_>| {
        if at(progress) {
            let run = || tokio::runtime::Handle::current().block_on(world.sql(statement));
            tokio::task::block_in_place(run);
        }
        if let VerifyProgress::Found(finding) = progress {
            found.push(finding.clone());
        }
    };
    let ended = verifier.run(&scope, sections, &mut report).await;
    (found, ended)
}

#[tokio::test(flavor = "multi_thread")]
async fn days_are_not_verified_if_it_is_unknown_which_were_due() {
    let world = World::archived().await;
    world.sql("ALTER TABLE daily_stats RENAME TO away").await;
    let sections = [Section::HotCopies, Section::Days];
    let days_begin = |it: VerifyProgress<'_>| matches!(it, VerifyProgress::Begins(Section::Days));
    let back = "ALTER TABLE away RENAME TO daily_stats";
    let (found, ended) = run_with(&world, &sections, days_begin, back).await;
    assert_eq!((found, &ended[0].incomplete), (vec![], &None));
    let Some(Incomplete::Unavailable { dependency, cause }) = &ended[1].incomplete else {
        panic!("{ended:?}")
    };
    assert_eq!(*dependency, Dependency::PostgreSql);
    assert!(cause.contains("daily_stats"), "{cause}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_overdue_is_reported_although_a_later_page_cannot_be_read() {
    let world = World { overdue_after: Duration::ZERO, ..World::new().await };
    let days = "INSERT INTO daily_stats (tenant_id, agent_id, model_name, day)
                SELECT 'acme', '', '', date '2026-01-01' + n FROM generate_series(1, 150) AS n";
    world.sql(days).await;
    // The tokens of the last day exceed the range of their column.
    let overflow = "INSERT INTO conversation_stats (tenant_id, conversation_id, message_count,
                        user_messages, assistant_messages, total_tokens, duration_seconds,
                        responses, computed_from, computed_at, day)
                    SELECT 'acme', n::text, 1, 1, 1, 9223372036854775807, 1, 0, now(), now(),
                           date '2026-01-01' + 150 FROM generate_series(1, 2) AS n";
    let all_read = |it: VerifyProgress<'_>| matches!(it, VerifyProgress::Checked(150));
    let (found, ended) = run_with(&world, &[Section::Days], all_read, overflow).await;
    assert!(matches!(ended[0].incomplete, Some(Incomplete::Unavailable { .. })), "{ended:?}");
    assert_eq!(found.iter().map(|it| it.kind).collect::<Vec<_>>(), [Kind::DayOverdue; 100]);
}

#[tokio::test]
async fn work_in_progress_is_not_reported_as_damage() {
    let world = World::new().await;
    let done = Arc::new(AtomicBool::new(false));
    let mut work = tokio::task::JoinSet::new();
    for worker in 0..3 {
        let (replica, done) = (Replica::of(&world.env), Arc::clone(&done));
        work.spawn(async move {
            let mut n = 0;
            while !done.load(Ordering::Relaxed) {
                let batch: Vec<_> = (0..20)
                    .map(|i| {
                        to_save(
                            &format!("s{}", (n + i) % 40),
                            &format!("m{worker}-{n}-{i}"),
                            &json!({}),
                        )
                    })
                    .collect();
                replica.save(&batch).await;
                replica
                    .reader
                    .read(
                        &key(&format!("s{}", n % 40)),
                        &hot_store::Window { newest: 50, before: None },
                    )
                    .await
                    .unwrap();
                n += 1;
            }
        });
    }
    let (closer, replica, again) =
        (world.closer.clone(), Replica::of(&world.env), Arc::clone(&done));
    work.spawn(async move {
        while !again.load(Ordering::Relaxed) {
            sweep(&closer).await;
            refresh(&replica.statistics).await;
            replica.words.write().await.unwrap();
        }
    });
    for round in 0..4 {
        // The close of half of the conversations is requested; savers reopen them.
        world
            .sql(
                "UPDATE conversations c SET close_requested_at = now()
                 FROM (SELECT number FROM conversations WHERE status = 'active' AND number % 2 = 0
                       ORDER BY tenant_id, id FOR NO KEY UPDATE SKIP LOCKED) AS chosen
                 WHERE c.number = chosen.number",
            )
            .await;
        assert_eq!(world.findings(&STORED).await, [], "round {round}");
    }
    done.store(true, Ordering::Relaxed);
    while let Some(ended) = work.join_next().await {
        ended.unwrap();
    }
    assert!(world.sql("SELECT count(*) > 100 FROM messages").await == "t");
}
