//! `conversation.sync_messages`: whole lists, without ids, as often as their senders like.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use conversation::{Source, SyncOutcome, ToSync};
use database::{HotWrites, ListToSync, SyncedList};
use domain::action::{Action, SyncMessages};
use domain::failure::{DeadLetterReason, Failure};
use domain::message::Message;
use domain::sync::names::Aligned;
use fixtures::lists::{body, same, say, turns};
use fixtures::{
    LIMIT, Replica, action, action_received, at, at_once, closed, closer, key, refresh, sql,
    stores, sweep, to_save,
};
use metrics::{Counter, SyncAlignment};
use serde_json::{Value, json};
use testkit::wait::eventually;

/// A list as a worker has it.
struct List {
    action: SyncMessages,
    body: Vec<u8>,
    is_tried: AtomicBool,
}

/// Each is received a millisecond after the one before it.
static CLOCK: AtomicI64 = AtomicI64::new(3_600_000_000);

fn list_at(session: &str, messages: &[Value], fields: &Value, micros: i64) -> List {
    let body = body(session, messages, fields);
    let Action::SyncMessages(action) = action_received(&body, &at(micros)) else {
        panic!("{body}")
    };
    List { action, body: body.to_string().into_bytes(), is_tried: AtomicBool::new(false) }
}

fn list(session: &str, messages: &[Value], fields: &Value) -> List {
    list_at(session, messages, fields, CLOCK.fetch_add(1_000, Ordering::Relaxed))
}

impl List {
    fn to_sync(&self) -> ToSync<'_> {
        ToSync { action: &self.action, body: &self.body, is_tried: &self.is_tried }
    }
}

async fn sync_all(replica: &Replica, lists: &[List]) -> Vec<Result<SyncOutcome, Failure>> {
    let lists: Vec<ToSync<'_>> = lists.iter().map(List::to_sync).collect();
    replica.saver.sync(&lists).await.unwrap()
}

async fn outcome(replica: &Replica, list: List) -> Result<SyncOutcome, Failure> {
    sync_all(replica, &[list]).await.pop().unwrap()
}

async fn sync_with(replica: &Replica, messages: &[Value], fields: &Value) -> SyncedList {
    match outcome(replica, list("s", messages, fields)).await {
        Ok(SyncOutcome::Stored(list)) => *list,
        other => panic!("{other:?}"),
    }
}

async fn sync(replica: &Replica, messages: &[Value]) -> SyncedList {
    sync_with(replica, messages, &json!({})).await
}

fn summary(list: &SyncedList) -> (Aligned, usize, usize) {
    (list.plan.aligned, list.plan.new.len(), list.plan.known)
}

fn texts(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|message| message.content.text()).collect()
}

async fn stored(replica: &Replica) -> Vec<String> {
    let messages = replica.read_both(&key("s"), 100).await;
    texts(&messages).into_iter().map(str::to_owned).collect()
}

/// Half of them say the same.
fn contents(count: usize) -> Vec<String> {
    let content = |n: usize| match n % 6 {
        1 => "yes".to_owned(),
        3 => "ok".to_owned(),
        5 => "Done.".to_owned(),
        _ => format!("message {n} with some words"),
    };
    (0..count).map(content).collect()
}

fn messages(contents: &[String]) -> Vec<Value> {
    turns(&contents.iter().map(String::as_str).collect::<Vec<_>>())
}

async fn save(replica: &Replica, id: &str, content: &str, micros: i64) {
    let extra = json!({"content": content, "timestamp": at(micros)});
    replica.save(&[to_save("s", id, &extra)]).await.pop().unwrap().unwrap();
}

#[tokio::test]
async fn a_list_that_grows_is_stored_once_and_read_in_its_order() {
    let (_env, replica) = stores().await;
    let contents = contents(20);
    let all = messages(&contents);
    for n in 1..=all.len() {
        let list = sync(&replica, &all[..n]).await;
        assert_eq!(summary(&list), (Aligned::Exact, 1, n - 1));
        assert_eq!(list.plan.tail, list.plan.new.last().map(|new| new.id.clone()));
        // A repetition, and one of an older call.
        assert_eq!(summary(&sync(&replica, &all[..n]).await), (Aligned::Exact, 0, n));
        assert_eq!(summary(&sync(&replica, &all[..n.div_ceil(2)]).await).1, 0);
    }
    assert_eq!(stored(&replica).await, contents);
}

#[tokio::test]
async fn lists_in_any_order_and_in_one_batch_are_stored_once_in_their_order() {
    let (env, replica) = stores().await;
    let others: Vec<Replica> = (0..3).map(|_| Replica::of(&env)).collect();
    let contents = contents(30);
    let all = messages(&contents);
    // In an order that is none, by four processes whose clocks differ by up to 50 ms.
    let list_of = |n: usize| {
        let end = (n * 17) % 30 + 1;
        let clock = 3_600_000_000 + i64::try_from((n * 7_919) % 50_000).unwrap();
        list_at("s", &all[..end], &json!({}), clock)
    };
    let lists: Vec<Vec<List>> =
        (0..4).map(|of| (0..30).filter(|n| n % 4 == of).map(list_of).collect()).collect();
    let replicas = [&replica, &others[0], &others[1], &others[2]];
    let syncs = replicas.iter().zip(&lists).map(|(replica, lists)| async move {
        for batch in lists.chunks(3) {
            for outcome in sync_all(replica, batch).await {
                assert!(matches!(outcome, Ok(SyncOutcome::Stored(_))), "{outcome:?}");
            }
        }
    });
    let [one, two, three, four] = syncs.collect::<Vec<_>>().try_into().ok().unwrap();
    tokio::join!(one, two, three, four);
    assert_eq!(stored(&replica).await, contents);
}

#[tokio::test]
async fn two_processes_with_the_same_and_with_different_continuations_store_each_message_once() {
    let (env, replica) = stores().await;
    let other = Replica::of(&env);
    let rounds = if testkit::environment::deep() { 1_000 } else { 100 };
    let mut branches = 0;
    for n in 0..rounds {
        let session = format!("s{n}");
        let is_same = n % 2 == 0;
        let shared = ["hi", "yes", "ok"];
        let of = |own: &'static str| turns(&[&shared[..], &[own, "yes"]].concat());
        let ends = if is_same { ["Done.", "Done."] } else { ["one", "two"] };
        let lists = ends.map(|end| list(&session, &of(end), &json!({})));
        let [one, two] = lists;
        let (one, two) = tokio::join!(outcome(&replica, one), outcome(&other, two));
        for outcome in [one, two] {
            let Ok(SyncOutcome::Stored(list)) = outcome else { panic!("{outcome:?}") };
            branches += usize::from(list.plan.aligned == Aligned::Branch);
        }
        let read = replica.read(&key(&session), 100).await.messages;
        let expected = if is_same { 5 } else { 7 };
        assert_eq!(read.len(), expected, "{n}: {:?}", texts(&read));
        assert_eq!(texts(&read)[..3], shared);
        // Each continuation in its order.
        for end in ends {
            let at = read.iter().position(|it| it.content.text() == end).unwrap();
            assert!(texts(&read)[at..].contains(&"yes"), "{:?}", texts(&read));
        }
    }
    assert_eq!(branches, rounds / 2);
}

#[tokio::test]
async fn differences_between_two_requests_store_nothing() {
    let (env, replica) = stores().await;
    for (n, (what, forms)) in same().into_iter().enumerate() {
        let session = format!("s{n}");
        for form in &forms {
            let messages = [say("user", "an opening with many words"), form.clone()];
            let outcome = outcome(&replica, list(&session, &messages, &json!({}))).await;
            let Ok(SyncOutcome::Stored(list)) = outcome else { panic!("{what}: {outcome:?}") };
            assert_eq!(list.plan.aligned, Aligned::Exact, "{what}");
        }
        assert_eq!(replica.read(&key(&session), 10).await.messages.len(), 2, "{what}");
        // A caller who cut the beginning: what is stored is compared with what is sent.
        let end = say("assistant", "a long end of a conversation");
        let whole = [say("user", "an opening with many words"), forms[0].clone(), end.clone()];
        outcome_of(&replica, &session, &whole).await;
        for form in &forms {
            let cut = [form.clone(), end.clone()];
            let list = outcome_of(&replica, &session, &cut).await;
            assert_eq!(list.plan.new.len(), 0, "{what}: {form}");
        }
    }
    assert_eq!(sql(&env, "SELECT count(*) FROM messages").await, (same().len() * 3).to_string());
}

async fn outcome_of(replica: &Replica, session: &str, messages: &[Value]) -> SyncedList {
    match outcome(replica, list(session, messages, &json!({}))).await {
        Ok(SyncOutcome::Stored(list)) => *list,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn regenerated_edited_refused_and_rewritten_lists() {
    let (env, replica) = stores().await;
    let long = "Which of the two flats is nearer to the river?";
    sync(&replica, &turns(&["hi", "hello", long, "the first one"])).await;
    // Regenerated.
    let regenerated = turns(&["hi", "hello", long, "the second one"]);
    let refuse = json!({"on_conflict": "refuse", "callback_queue_name": "replies"});
    let refused = outcome(&replica, list("s", &regenerated, &refuse)).await;
    assert_eq!(refused, Ok(SyncOutcome::NoBranch(3)));
    let branch = sync(&replica, &regenerated).await;
    assert_eq!(summary(&branch), (Aligned::Branch, 1, 3));
    let parents = "SELECT string_agg(concat(m.content, '<', p.content), ',' ORDER BY m.created_at)
                   FROM messages m JOIN messages p ON p.id = m.parent_message_id";
    assert_eq!(sql(&env, parents).await, format!("the second one<{long}"));
    // It goes on: every message of the branch names the one before it.
    sync(&replica, &turns(&["hi", "hello", long, "the second one", "thanks"])).await;
    // Edited.
    let third = "And what about the third of the flats?";
    let edited = sync(&replica, &turns(&["hi", "hello", third])).await;
    assert_eq!(summary(&edited), (Aligned::Branch, 1, 2));
    // Summarised: its end is that of the newest branch.
    let mut cut = vec![say("user", "A summary of it all")];
    cut.extend([say("assistant", "hello"), say("user", third), say("assistant", "sold")]);
    let inferred = sync(&replica, &cut).await;
    assert_eq!(summary(&inferred), (Aligned::Inferred, 1, 3));
    assert_eq!(summary(&sync(&replica, &cut).await), (Aligned::Exact, 0, 4));
    assert_eq!(
        stored(&replica).await,
        ["hi", "hello", long, "the first one", "the second one", "thanks", third, "sold"]
    );
    let all = [
        SyncAlignment::Exact,
        SyncAlignment::Inferred,
        SyncAlignment::Branch,
        SyncAlignment::Conflict,
    ];
    let counted = all.map(|aligned| replica.metrics.count(Counter::Syncs { aligned }));
    assert_eq!(counted, [3, 1, 2, 1]);
}

#[tokio::test]
async fn what_cannot_be_stored_says_why_and_stores_nothing() {
    let (env, replica) = stores().await;
    save(&replica, "own", "hi", 0).await;
    let refused = async |messages: &[Value], fields: &Value| {
        outcome(&replica, list("s", messages, fields)).await.unwrap_err()
    };
    let nothing = json!({});
    let failure = refused(&turns(&["other", "words"]), &nothing).await;
    let Failure::DeadLetter(refusal) = &failure else { panic!("{failure:?}") };
    assert_eq!(refusal.reason, DeadLetterReason::Conflict);
    assert_eq!(refusal.field.as_deref(), Some("messages"));
    assert!(refusal.detail.contains("send the messages behind a stored one"), "{}", refusal.detail);
    // What it goes on from may arrive yet.
    let failure = refused(&turns(&["hello"]), &json!({"after": "later"})).await;
    assert!(matches!(failure, Failure::Retry(_)), "{failure:?}");
    save(&replica, "later", "well", 1_000).await;
    let stored = sync_with(&replica, &turns(&["hello"]), &json!({"after": "later"})).await;
    assert_eq!(summary(&stored), (Aligned::Exact, 1, 0));
    assert_eq!(sql(&env, "SELECT count(*) FROM messages").await, "3");
    // Neither of these leaves a conversation without messages.
    let typing_error = list("another", &turns(&["hello"]), &json!({"after": "later"}));
    assert!(outcome(&replica, typing_error).await.is_err());
    let only_a_head = list("head", &[say("system", "Be kind.")], &nothing);
    assert!(outcome(&replica, only_a_head).await.is_ok());
    assert_eq!(sql(&env, "SELECT count(*) FROM conversations").await, "1");
}

#[tokio::test]
async fn a_deleted_call_and_its_emptied_result_are_still_known_by_their_ids() {
    let (_env, replica) = stores().await;
    let named = |id: &str, mut message: Value| {
        message["message_id"] = id.into();
        message
    };
    let call =
        json!([{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    let mut all = vec![
        named("u", say("user", "hi")),
        named("c", json!({"role": "assistant", "content": null, "tool_calls": call})),
        named("r", json!({"role": "tool", "content": "7", "tool_call_id": "call_1"})),
    ];
    for (n, message) in all.iter().enumerate() {
        let mut message = message.clone();
        message["timestamp"] = at(i64::try_from(n).unwrap() * 1_000).into();
        let id = message["message_id"].as_str().unwrap().to_owned();
        replica.save(&[to_save("s", &id, &message)]).await.pop().unwrap().unwrap();
    }
    let delete = fixtures::deleted("acme", "s", "c");
    let Action::DeleteMessage(common, payload) = action(&delete) else { panic!("a deletion") };
    replica.deletions.delete(&[(&common, &payload.message_id)]).await.unwrap();
    all.push(say("assistant", "It is 7."));
    assert_eq!(summary(&sync(&replica, &all).await), (Aligned::Exact, 1, 3));
    assert_eq!(stored(&replica).await, ["hi", "", "It is 7."]);
}

#[tokio::test]
async fn a_part_of_a_list_that_is_inserted_before_a_later_part_fails_is_not_kept() {
    let (env, replica) = stores().await;
    // They are inserted in one transaction, 500 messages with each statement, in the order of their conversations. The second
    // statement has messages of a user who was erased.
    let contents = contents(600);
    let first = list("a", &messages(&contents), &json!({"conversation_id": "a"}));
    let second = json!({"conversation_id": "b", "user_id": "gone"});
    let second = list("b", &turns(&["hi", "hello"]), &second);
    sql(
        &env,
        "INSERT INTO tombstones (tenant_id, kind, subject, erased_at)
         VALUES ('acme', 'user', 'gone', now() + '1 h')",
    )
    .await;
    let outcomes = sync_all(&replica, &[first, second]).await;
    assert!(matches!(&outcomes[0], Ok(SyncOutcome::Stored(list)) if list.plan.new.len() == 600));
    assert_eq!(outcomes[1], Ok(SyncOutcome::Erased));
    let texts = "SELECT string_agg(content, '|' ORDER BY created_at, id) FROM messages";
    assert_eq!(sql(&env, texts).await, contents.join("|"));
    assert_eq!(sql(&env, "SELECT string_agg(id, ' ') FROM conversations").await, "a");
}

#[tokio::test]
async fn a_list_that_postgresql_refuses_fails_alone() {
    let (env, replica) = stores().await;
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
                  BEGIN RAISE EXCEPTION 'refused by the test' USING ERRCODE = '22023'; END $$;
                  CREATE TRIGGER refuse BEFORE INSERT ON message_rows
                      FOR EACH ROW WHEN (NEW.content = 'poison') EXECUTE FUNCTION refuse()";
    sql(&env, refuse).await;
    let of = |n: usize| {
        let end = if n == 5 { "poison" } else { "hello" };
        list(&format!("s{n}"), &turns(&["hi", end]), &json!({}))
    };
    let outcomes = sync_all(&replica, &(0..9).map(of).collect::<Vec<_>>()).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Err(Failure::DeadLetter(refusal)) => {
                assert_eq!((n, refusal.reason), (5, DeadLetterReason::Schema));
            }
            other => assert!(matches!(other, Ok(SyncOutcome::Stored(_))), "{n}: {other:?}"),
        }
    }
    assert_eq!(sql(&env, "SELECT count(*) FROM messages").await, "16");
}

#[tokio::test]
async fn what_others_save_before_between_and_behind_is_stored_once() {
    let (_env, replica) = stores().await;
    save(&replica, "own-1", "hi", 0).await;
    // It has no time in the list: it stands before the stored message all the same.
    let mut all = vec![
        say("user", "before"),
        json!({"role": "user", "content": "hi", "message_id": "own-1"}),
    ];
    assert_eq!(summary(&sync(&replica, &all).await), (Aligned::Exact, 1, 1));
    all.push(say("assistant", "hello"));
    assert_eq!(summary(&sync(&replica, &all).await), (Aligned::Exact, 1, 2));
    // Late, with an older time.
    save(&replica, "own-2", "late", 1_000_000).await;
    all.push(say("user", "yes"));
    assert_eq!(summary(&sync(&replica, &all).await), (Aligned::Exact, 1, 3));
    // At the end: a list that does not have it is a branch.
    save(&replica, "own-3", "note", 7_200_000_000).await;
    all.push(say("assistant", "ok"));
    assert_eq!(summary(&sync(&replica, &all).await), (Aligned::Branch, 1, 4));
    assert_eq!(stored(&replica).await, ["before", "hi", "late", "hello", "yes", "ok", "note"]);
    // One that has it goes on behind it, and without ids it is recognised.
    all.push(json!({"role": "user", "content": "note", "message_id": "own-3"}));
    all.push(say("assistant", "done"));
    assert_eq!(summary(&sync(&replica, &all).await), (Aligned::Exact, 1, 6));
    for message in &mut all {
        message.as_object_mut().unwrap().remove("message_id");
    }
    assert_eq!(summary(&sync(&replica, &all).await), (Aligned::Exact, 0, 7));
    assert_eq!(stored(&replica).await.last().unwrap(), "done");
}

#[tokio::test]
async fn system_messages_at_the_head_are_stored_as_the_sender_wants() {
    let (env, replica) = stores().await;
    for (policy, expected) in [("changed", 10), ("first", 1), ("ignore", 0)] {
        for n in 1..=10 {
            let mut messages = vec![say("system", &format!("It is {n} o'clock."))];
            messages.extend(turns(&vec!["hi"; n]));
            let list = list(policy, &messages, &json!({"system": policy}));
            outcome(&replica, list).await.unwrap();
        }
        let count = format!(
            "SELECT count(*) FILTER (WHERE role = 'system') || ' ' || count(*) FILTER (WHERE role <> 'system')
             FROM messages JOIN conversations c ON c.id = conversation_id WHERE c.session_id = '{policy}'"
        );
        assert_eq!(sql(&env, &count).await, format!("{expected} 10"), "{policy}");
    }
    // One that another sender saved is not stored again, and is looked for once.
    let prompt = json!({"role": "system", "content": "Be kind.", "timestamp": at(0)});
    replica.save(&[to_save("s", "prompt", &prompt)]).await.pop().unwrap().unwrap();
    for n in 1..=3 {
        let mut messages = vec![say("system", "Be kind. ")];
        messages.extend(turns(&vec!["yes"; n]));
        sync(&replica, &messages).await;
    }
    assert_eq!(stored(&replica).await, ["Be kind.", "yes", "yes", "yes"]);
    assert_eq!(sql(&env, "SELECT count(*) FROM sync_heads").await, "3");
}

#[tokio::test]
async fn a_long_history_costs_what_is_new_of_it() {
    let (env, replica) = stores().await;
    let contents = contents(2_002);
    let all = messages(&contents);
    assert_eq!(summary(&sync(&replica, &all[..2_000]).await), (Aligned::Exact, 2_000, 0));
    // What the connections of the first list read is counted when they end.
    let looked_up = async || {
        sql(
            &env,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await;
        eventually("the end of other connections", LIMIT, async || {
            let others = "SELECT count(*) FROM pg_stat_activity
                          WHERE datname = current_database() AND pid <> pg_backend_pid()";
            match sql(&env, others).await.as_str() {
                "0" => Ok(()),
                count => Err(format!("{count} connections")),
            }
        })
        .await;
        let numbers = "SELECT sum(n_tup_ins) FILTER (WHERE relname = 'message_rows') || ' ' || sum(coalesce(idx_scan, 0))
                              || ' ' || sum(seq_tup_read + coalesce(idx_tup_fetch, 0))
                       FROM pg_stat_user_tables WHERE relname IN ('message_rows', 'sync_aliases', 'sync_heads')";
        let numbers = sql(&env, numbers).await;
        numbers.split(' ').map(|number| number.parse().unwrap()).collect::<Vec<i64>>()
    };
    let before = looked_up().await;
    assert_eq!(before[0], 2_000);
    assert_eq!(summary(&sync(&Replica::of(&env), &all).await), (Aligned::Exact, 2, 2_000));
    let after = looked_up().await;
    assert_eq!(after[0], 2_002);
    for (what, n) in [("look-ups", 1), ("rows read", 2)] {
        assert!(after[n] - before[n] < 40, "{what}: {before:?} {after:?}");
    }
}

#[tokio::test]
async fn an_archived_conversation_is_reopened_by_what_is_new_and_by_nothing_else() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, at_once()).await;
    let all = turns(&["hi", "hello", "yes", "ok"]);
    sync(&replica, &all[..2]).await;
    let archived = async || {
        sweep(&closer).await;
        refresh(&replica.statistics).await;
        let row = "SELECT concat_ws('|', c.status, c.message_count, s.avg_response_seconds IS NULL)
                   FROM conversations c LEFT JOIN conversation_stats s ON s.conversation_id = c.id";
        sql(&env, row).await
    };
    let close = action(&closed("acme", "s", &json!({"timestamp": at(10_000_000_000)})));
    replica.sessions.record(&[close]).await.unwrap().pop().unwrap().unwrap();
    // Its messages have no times of their own, so no response time is computed from them.
    assert_eq!(archived().await, "archived|2|t");
    assert_eq!(summary(&sync(&replica, &all[..2]).await), (Aligned::Exact, 0, 2));
    assert_eq!(archived().await, "archived|2|t");
    assert_eq!(summary(&sync(&replica, &all).await), (Aligned::Exact, 2, 2));
    let reopened = sql(&env, "SELECT concat_ws('|', status, reopened) FROM conversations").await;
    assert_eq!(reopened, "active|t");
    assert_eq!(archived().await, "archived|4|t");
    // With times of their own they have one.
    let timed = |n: usize, message: &Value| {
        let mut message = message.clone();
        message["timestamp"] = at(i64::try_from(n).unwrap() * 2_000_000).into();
        message
    };
    let timed: Vec<Value> = all.iter().enumerate().map(|(n, it)| timed(n, it)).collect();
    outcome(&replica, list("timed", &timed, &json!({}))).await.unwrap();
    let close = action(&closed("acme", "timed", &json!({"timestamp": at(10_000_000_000)})));
    replica.sessions.record(&[close]).await.unwrap().pop().unwrap().unwrap();
    archived().await;
    let seconds = "SELECT avg_response_seconds FROM conversation_stats WHERE avg_response_seconds IS NOT NULL";
    assert_eq!(sql(&env, seconds).await, "2");
}

#[tokio::test]
async fn a_deleted_message_stays_deleted_when_its_list_comes_again() {
    let (_env, replica) = stores().await;
    let all = turns(&["hi", "hello", "yes", "ok"]);
    let list = sync(&replica, &all[..3]).await;
    let delete = fixtures::deleted("acme", "s", list.plan.new[1].id.as_str());
    let Action::DeleteMessage(common, payload) = action(&delete) else { panic!("a deletion") };
    replica.deletions.delete(&[(&common, &payload.message_id)]).await.unwrap();
    assert_eq!(summary(&sync(&replica, &all).await), (Aligned::Exact, 1, 3));
    assert_eq!(stored(&replica).await, ["hi", "yes", "ok"]);
    // Also the last one, from which the list goes on.
    let tail = sync(&replica, &all).await.plan.tail.unwrap();
    let delete = fixtures::deleted("acme", "s", tail.as_str());
    let Action::DeleteMessage(common, payload) = action(&delete) else { panic!("a deletion") };
    replica.deletions.delete(&[(&common, &payload.message_id)]).await.unwrap();
    let more = turns(&["hi", "hello", "yes", "ok", "done"]);
    assert_eq!(summary(&sync(&replica, &more).await), (Aligned::Exact, 1, 4));
    let after = sync_with(&replica, &turns(&["well"]), &json!({"after": tail})).await;
    assert_eq!(after.plan.new.len(), 1);
    assert_eq!(stored(&replica).await, ["hi", "yes", "done", "well"]);
    // An answer that is generated again behind one that was deleted is a branch.
    let branch = sync(&replica, &turns(&["hi", "hello", "another"])).await;
    assert_eq!(summary(&branch), (Aligned::Branch, 1, 2));
    let first = replica.read(&key("s"), 10).await.messages[0].id.clone();
    assert_eq!(branch.plan.new[0].parent, Some(first));
}

#[tokio::test]
async fn a_try_that_may_have_been_committed_invalidates_the_copy() {
    let (_env, replica) = stores().await;
    let all = turns(&["hi", "hello", "yes", "ok"]);
    sync(&replica, &all[..2]).await;
    stored(&replica).await;
    // Another process commits the rest, and ends before it writes the copy: its Redis is away.
    let other = Replica::on(replica.database.clone(), "redis://127.0.0.1:1");
    let first = list("s", &all, &json!({}));
    let lists = [ListToSync { action: &first.action, body: &first.body }];
    other.database.sync(&lists, HotWrites::Follow, &|| 7).await.unwrap();
    let read = replica.read(&key("s"), 10).await;
    assert_eq!(
        (read.source, read.messages.len()),
        (Source::HotCopy, 2),
        "the copy lacks two messages"
    );
    // The same delivery again, in this process.
    first.is_tried.store(true, Ordering::Relaxed);
    assert!(matches!(outcome(&replica, first).await, Ok(SyncOutcome::Stored(_))));
    assert_eq!(stored(&replica).await.len(), 4);
}

#[tokio::test]
async fn a_slow_list_keeps_no_other_one_of_its_conversation_from_invalidating_the_copy() {
    let (env, replica) = stores().await;
    let all = turns(&["hi", "hello", "yes", "ok"]);
    sync(&replica, &all[..2]).await;
    stored(&replica).await;
    let tried = list("s", &all, &json!({}));
    let lists = [ListToSync { action: &tried.action, body: &tried.body }];
    replica.database.sync(&lists, HotWrites::Follow, &|| 7).await.unwrap();
    tried.is_tried.store(true, Ordering::Relaxed);
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN PERFORM pg_sleep(10); RETURN NEW; END $$;
                CREATE TRIGGER slow BEFORE INSERT ON message_rows
                    FOR EACH ROW WHEN (NEW.content = 'slow') EXECUTE FUNCTION slow()";
    sql(&env, slow).await;
    let with_slow = list("s", &turns(&["hi", "hello", "yes", "ok", "slow"]), &json!({}));
    let outcomes = sync_all(&replica, &[tried, with_slow]).await;
    assert!(matches!(outcomes[0], Ok(SyncOutcome::Stored(_))), "{outcomes:?}");
    assert!(matches!(&outcomes[1], Err(failure) if failure.is_apart()), "{outcomes:?}");
    assert_eq!(stored(&replica).await, ["hi", "hello", "yes", "ok"]);
}

#[tokio::test]
async fn without_redis_lists_are_stored_and_their_copies_invalid() {
    let (env, replica) = stores().await;
    let all = turns(&["hi", "hello", "yes", "ok"]);
    sync(&replica, &all[..2]).await;
    stored(&replica).await;
    let without = Replica::on(replica.database.clone(), "redis://127.0.0.1:1");
    for n in [3, 3, 4] {
        let generation = async || sql(&env, "SELECT hot_generation FROM conversations").await;
        let before = generation().await;
        sync(&without, &all[..n]).await;
        assert_ne!(generation().await, before, "{n}");
    }
    assert_eq!(stored(&replica).await.len(), 4);
}
