//! `conversation.sync_messages`: what is stored of lists, with a conversation in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use domain::action::{Action, ListedMessage, SyncMessages};
use domain::decode::listed_messages;
use domain::ids::MessageId;
use domain::message::{Message, Role};
use domain::sync::hash::{Fingerprint, SyncHash};
use domain::sync::names::Aligned;
use domain::sync::path::Computed;
use domain::sync::plan::{Known, LINE, Line, LineMessage, Own, Plan, Stored, Undecided, decide};
use domain::time::Timestamp;
use fixtures::lists::{self, same, say, turns};
use fixtures::{action_received, decoded, received_at};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_json::{Value, json};

/// What PostgreSQL and the worker do, in memory.
#[derive(Default)]
struct Conversation {
    messages: Vec<Message>,
    aliases: HashMap<Computed, MessageId>,
    head: Option<SyncHash>,
    /// Microseconds between the first receipt and the last one.
    clock: i64,
}

/// A list that was received so many microseconds after the first one.
fn received(body: &Value, clock: i64) -> SyncMessages {
    let at = Timestamp::from_micros(received_at().micros() + clock).expect("a time");
    match action_received(body, &at.to_string()) {
        Action::SyncMessages(list) => list,
        other => panic!("{body}: {other:?}"),
    }
}

fn list(body: &Value) -> SyncMessages {
    match decoded(&body.to_string()) {
        Ok(Action::SyncMessages(list)) => list,
        other => panic!("{body}: {other:?}"),
    }
}

fn body(messages: &[Value], fields: &Value) -> Value {
    lists::body("s", messages, fields)
}

impl Conversation {
    fn sync(&mut self, messages: &[Value]) -> Plan {
        self.sync_with(messages, &json!({})).expect("a list that can be stored")
    }

    fn sync_with(&mut self, messages: &[Value], fields: &Value) -> Result<Plan, Undecided> {
        let body = body(messages, fields);
        self.clock += 1_000;
        let list = received(&body, self.clock);
        let after = list.after.as_ref().map(|id| self.stored(id).expect("the message is stored"));
        let path = list.path(list.after.as_ref().map(|id| self.start_after(&list, id)));
        let known = self.known(&list, &path, after);
        let plan = match decide(&list, &path, &known, None) {
            Err(Undecided::NeedsLine) => decide(&list, &path, &known, Some(&self.line()))?,
            decided => decided?,
        };
        let new = listed_messages(body.to_string().as_bytes(), &list, &plan.new);
        let stored = self.messages.iter().map(|it| it.id.clone()).collect::<BTreeSet<_>>();
        let new = new.expect("the messages of the list").into_iter().map(|save| save.message);
        // Only a message of the head may be stored already, before the same message of another branch.
        let is_new = |message: &Message| {
            let is_stored = stored.contains(&message.id);
            let is_instruction = matches!(message.role, Role::System | Role::Developer);
            assert!(!is_stored || is_instruction, "{} is stored", message.id);
            !is_stored
        };
        self.messages.extend(new.filter(is_new));
        self.messages.sort_by_key(Message::position);
        self.aliases.extend(plan.aliases.iter().cloned());
        self.head = plan.head.or(self.head);
        Ok(plan)
    }

    /// The computed id under which the list goes on, if there are several: that of what is stored.
    fn start_after(&self, list: &SyncMessages, id: &MessageId) -> Computed {
        let own = Computed::of_stored(&list.common.key, id);
        let aliases = self.aliases.iter().filter(|(_, stored)| *stored == id).map(|(it, _)| *it);
        let mut starts: Vec<Computed> = aliases.chain([own]).collect();
        starts.sort_unstable();
        let is_stored = |start: &&Computed| {
            list.path(Some(**start)).first().is_some_and(|first| self.find(*first).is_some())
        };
        starts.iter().find(is_stored).copied().unwrap_or(own)
    }

    fn stored(&self, id: &MessageId) -> Option<Stored> {
        let message = self.messages.iter().find(|message| message.id == *id)?;
        let has_parent = parent(message).is_some();
        Some(Stored { id: id.clone(), created_at: Some(message.created_at), has_parent })
    }

    fn find(&self, computed: Computed) -> Option<Stored> {
        self.stored(&computed.message_id()).or_else(|| self.stored(self.aliases.get(&computed)?))
    }

    fn known(&self, list: &SyncMessages, path: &[Computed], after: Option<Stored>) -> Known {
        let last = path.iter().enumerate().rev();
        let last = last.filter_map(|(place, id)| Some((place, self.find(*id)?))).next();
        let from = last.as_ref().map_or(0, |(place, _)| place + 1);
        let own = |(place, it): (usize, &ListedMessage)| {
            let message =
                self.messages.iter().find(|message| Some(&message.id) == it.id.as_ref())?;
            let says_the_same = Fingerprint::of(message).hash == it.fingerprint.hash;
            Some((place, Own { stored: self.stored(&message.id)?, says_the_same }))
        };
        let own = list.listed.iter().enumerate().skip(from).filter_map(own).collect();
        let newest = self.messages.last().and_then(|message| self.stored(&message.id));
        Known { last, own, after, newest, head: self.head, ..Known::default() }
    }

    fn line(&self) -> Line {
        let mut messages = Vec::new();
        let mut rest = self.messages.iter().rev();
        let mut next = rest.next();
        while let Some(message) = next.filter(|_| messages.len() < LINE) {
            messages.push(LineMessage {
                stored: self.stored(&message.id).expect("it is stored"),
                fingerprint: Fingerprint::of(message),
                is_instruction: matches!(message.role, Role::System | Role::Developer),
            });
            next = match parent(message) {
                Some(parent) => rest.find(|message| message.id == *parent),
                None => rest.next(),
            };
        }
        Line { messages, is_whole: next.is_none() }
    }

    /// A message that another sender saves.
    fn save(&mut self, id: &str, role: &str, content: &str, time: &str) {
        let body = json!({
            "action_type": "conversation.save_message", "tenant_id": "t", "session_id": "s",
            "message_id": id, "role": role, "content": content, "timestamp": time,
        });
        let Ok(Action::SaveMessage(save)) = decoded(&body.to_string()) else { panic!("{body}") };
        self.messages.push(save.message);
        self.messages.sort_by_key(Message::position);
    }

    fn texts(&self) -> Vec<&str> {
        self.messages.iter().map(|message| message.content.text()).collect()
    }
}

fn parent(message: &Message) -> Option<&MessageId> {
    message.details.as_ref()?.parent_message_id.as_ref()
}

fn hash(message: &Value) -> SyncHash {
    let list = list(&body(&[say("user", "first"), message.clone()], &json!({})));
    list.listed[1].fingerprint.hash
}

#[test]
fn differences_between_two_requests_are_no_differences() {
    let same = same();
    assert!(same.len() >= 15);
    for (what, forms) in &same {
        let hashes: BTreeSet<_> = forms.iter().map(hash).collect();
        assert_eq!(hashes.len(), 1, "{what}");
        // Stored, each is compared with the others by the same hash, and none of them is stored again.
        let mut conversation = Conversation::default();
        for form in forms {
            let first = say("user", "an opening with many words");
            let plan = conversation.sync(&[first, form.clone()]);
            assert_eq!(plan.aligned, Aligned::Exact, "{what}: {form}");
        }
        assert_eq!(conversation.messages.len(), 2, "{what}");
        let stored = Fingerprint::of(&conversation.messages[1]).hash;
        assert_eq!(hashes.first(), Some(&stored), "{what}");
    }
}

#[test]
fn what_is_said_makes_a_difference() {
    let call = |name: &str, arguments: &str| json!({"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": name, "arguments": arguments}}]});
    let different = [
        say("user", "hi"),
        say("assistant", "hi"),
        say("system", "hi"),
        say("developer", "hi"),
        say("tool", "hi"),
        say("user", "Hi"),
        say("user", " hi"),
        say("user", "hi\u{a0}"),
        say("user", "hi."),
        say("user", ""),
        say("user", "{}"),
        json!({"role": "user", "content": ["h", "i"]}),
        json!({"role": "user", "content": ["hi", {"type": "image_url", "image_url": {"url": "a"}}]}),
        json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}, "hi"]}),
        json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "b"}}, "hi"]}),
        json!({"role": "user", "content": [{"type": "tool_result", "content": "hi"}]}),
        json!({"role": "user", "content": [{"type": "tool_result", "content": "h"}, "i"]}),
        call("f", "{}"),
        call("g", "{}"),
        call("f", "{\"a\":1}"),
        call("f", "{\"a\":\"1\"}"),
        call("f", "{\"a\":null}"),
        call("f", "{\"a\":"),
        json!({"role": "assistant", "content": "f", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}),
        json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}, {"function": {"name": "f", "arguments": "{}"}}]}),
        json!({"role": "assistant", "audio": {"id": "audio_1"}}),
        json!({"role": "assistant", "audio": {"id": "audio_2"}}),
        json!({"role": "assistant", "item": {"type": "a"}}),
        json!({"role": "assistant", "item": {"type": "b"}}),
        json!({"role": "assistant", "content": null}),
    ];
    let hashes: BTreeMap<_, _> = different.iter().map(|it| (hash(it), it)).collect();
    assert_eq!(hashes.len(), different.len(), "{hashes:?}");
}

#[test]
fn computed_ids_never_change() {
    // Golden: with other values a list would be stored a second time. Fix the code, never the values.
    let messages = [
        say("system", "Be kind."),
        say("user", "sí"),
        json!({"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": [1.0, 1e400]}"}}]}),
        json!({"role": "tool", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}, "b "], "tool_call_id": "c"}),
        json!({"role": "assistant", "audio": {"id": "audio_1"}}),
        json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": ["r"]}]}),
        json!({"role": "assistant", "item": {"type": "reasoning", "id": "rs_1"}}),
        json!({"role": "assistant", "tool_calls": [{"name": "g", "args": "not JSON"}, {"type": "code"}]}),
    ];
    let list = list(&body(&messages, &json!({})));
    let path = list.path(None);
    let ids: Vec<String> = path.iter().map(|id| id.message_id().to_string()).collect();
    let key = &list.common.key;
    let head = list.head[0].fingerprint.hash;
    let instruction = |before| Computed::of_instruction(key, before, 0, head).message_id();
    let named = MessageId::new("m-1").expect("an id");
    let others = [
        instruction(None).to_string(),
        instruction(Some(path[0])).to_string(),
        Computed::of_stored(key, &named).message_id().to_string(),
        hex(&list.head_hash().expect("a head")),
    ];
    insta::assert_debug_snapshot!("computed_ids", (ids, others));
    assert_eq!(Computed::of_stored(key, &path[0].message_id()), path[0]);
}

fn hex(hash: &SyncHash) -> String {
    hash.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_list_that_grows_is_stored_once() {
    let mut conversation = Conversation::default();
    let all = turns(&["hi", "hello", "yes", "ok", "yes", "ok", "yes"]);
    for n in 1..=all.len() {
        let plan = conversation.sync(&all[..n]);
        assert_eq!((plan.aligned, plan.new.len(), plan.known), (Aligned::Exact, 1, n - 1));
        assert_eq!(plan.tail, plan.new.last().map(|new| new.id.clone()));
        let again = conversation.sync(&all[..n]);
        assert_eq!((again.aligned, again.new.len(), again.known), (Aligned::Exact, 0, n));
        assert_eq!(again.tail, plan.tail);
    }
    assert_eq!(conversation.texts(), ["hi", "hello", "yes", "ok", "yes", "ok", "yes"]);
}

#[test]
fn a_regenerated_answer_is_a_branch_unless_that_is_refused() {
    let mut conversation = Conversation::default();
    conversation.sync(&turns(&["hi", "hello"]));
    let b = turns(&["hi", "good day"]);
    let refused =
        conversation.sync_with(&b, &json!({"on_conflict": "refuse", "callback_queue_name": "q"}));
    assert_eq!(refused, Err(Undecided::Refused(1)));
    let plan = conversation.sync(&b);
    let first = conversation.messages[0].id.clone();
    assert_eq!((plan.aligned, plan.branch_of), (Aligned::Branch, Some(first.clone())));
    assert_eq!(plan.new[0].parent, Some(first));
    assert_eq!(conversation.sync(&b).new.len(), 0);
    assert_eq!(conversation.sync(&turns(&["hi", "hello"])).new.len(), 0);
    assert_eq!(conversation.texts(), ["hi", "hello", "good day"]);
    // Each goes on from its own branch, and says so of each of its messages.
    let plan = conversation.sync(&turns(&["hi", "good day", "bye"]));
    assert_eq!((plan.aligned, plan.branch_of), (Aligned::Exact, None));
    assert_eq!(plan.new[0].parent, Some(conversation.messages[2].id.clone()));
    let plan = conversation.sync(&turns(&["hi", "hello", "well"]));
    assert_eq!(plan.aligned, Aligned::Branch);
    assert_eq!(plan.branch_of, Some(conversation.messages[1].id.clone()));
    assert_eq!(conversation.texts(), ["hi", "hello", "good day", "bye", "well"]);
}

#[test]
fn a_rewritten_past_is_found_by_its_end() {
    let mut conversation = Conversation::default();
    let long = "Which of the two flats is nearer to the river?";
    let all = ["hi", "hello", "tell me", "a long answer of many words", long, "the first one"];
    conversation.sync(&turns(&all));
    let mut summarised = vec![say("user", "Summary of what was said: two flats.")];
    summarised.extend(turns(&[long, "the first one", "thanks"]));
    let plan = conversation.sync(&summarised);
    assert_eq!((plan.aligned, plan.new.len(), plan.known), (Aligned::Inferred, 1, 3));
    // From here on exact.
    for more in ["ok", "bye"] {
        assert_eq!(conversation.sync(&summarised).aligned, Aligned::Exact);
        summarised.push(say("user", more));
        assert_eq!(conversation.sync(&summarised).aligned, Aligned::Exact);
    }
    let mut expected = all.to_vec();
    expected.extend(["thanks", "ok", "bye"]);
    assert_eq!(conversation.texts(), expected);
    // Short messages alone are no evidence, and neither is a run that is there twice.
    let nothing = conversation.sync_with(&turns(&["ok", "bye", "one", "two"]), &json!({}));
    assert_eq!(nothing, Err(Undecided::NothingInCommon));
    let mut twice = summarised[2..].to_vec();
    twice.extend(summarised[2..].to_vec());
    assert_eq!(conversation.sync_with(&twice, &json!({})), Err(Undecided::NothingInCommon));
}

#[test]
fn a_conversation_that_others_began_is_continued() {
    let mut conversation = Conversation::default();
    conversation.save("own-1", "user", "hi", "2026-11-20T10:00:00Z");
    let plan = conversation.sync(&turns(&["hi", "hello"]));
    assert_eq!((plan.aligned, plan.new.len()), (Aligned::Inferred, 1));
    assert_eq!(conversation.texts(), ["hi", "hello"]);
    assert_eq!(conversation.sync(&turns(&["hi", "hello", "yes"])).aligned, Aligned::Exact);
    // What another one saves in between or at the end stays where its time puts it.
    conversation.save("own-2", "assistant", "late", "2026-11-20T10:00:01Z");
    assert_eq!(conversation.sync(&turns(&["hi", "hello", "yes", "ok"])).aligned, Aligned::Exact);
    conversation.save("own-3", "assistant", "note", "2026-11-20T12:30:00Z");
    let plan = conversation.sync(&turns(&["hi", "hello", "yes", "ok", "done"]));
    assert_eq!(plan.aligned, Aligned::Branch);
    assert_eq!(conversation.texts(), ["hi", "late", "hello", "yes", "ok", "done", "note"]);
}

#[test]
fn messages_with_ids_of_their_own_are_stored_under_them_and_found_by_both() {
    let named = |id: &str, message: &Value| {
        let mut message = message.clone();
        message["message_id"] = id.into();
        message
    };
    let all = turns(&["hi", "hello", "yes", "ok"]);
    let with_ids =
        [all[0].clone(), named("own-1", &all[1]), all[2].clone(), named("own-3", &all[3])];
    let mut conversation = Conversation::default();
    conversation.save("own-1", "assistant", "hello", "2026-11-20T10:00:00Z");
    let plan = conversation.sync(&with_ids);
    assert_eq!((plan.aligned, plan.new.len(), plan.known), (Aligned::Exact, 3, 1));
    assert_eq!(conversation.texts(), ["hi", "hello", "yes", "ok"]);
    assert_eq!(plan.tail.as_ref().map(MessageId::as_str), Some("own-3"));
    // Without ids, and with others.
    for again in [all.clone(), [named("a", &all[0]), named("b", &all[1])].to_vec()] {
        let plan = conversation.sync(&again);
        assert_eq!((plan.aligned, plan.new.len()), (Aligned::Exact, 0));
    }
    let tail = conversation.sync(&all).tail;
    let plan = conversation.sync_with(&turns(&["done"]), &json!({"after": tail})).expect("a plan");
    assert_eq!((plan.aligned, plan.new.len()), (Aligned::Exact, 1));
    // Whoever sends the whole list finds what another one sent behind `after`.
    let whole = [&all[..], &turns(&["done"])].concat();
    let plan = conversation.sync(&whole);
    assert_eq!(plan.new.len(), 0, "{plan:?}");
}

#[test]
fn a_message_with_an_id_of_its_own_may_be_cleared_or_edited() {
    let named = |n: usize, role: &str, content: &str| json!({"role": role, "content": content, "message_id": format!("m{n}")});
    let mut conversation = Conversation::default();
    let mut all: Vec<Value> = ["ask", "call", "a long result", "yes"]
        .iter()
        .enumerate()
        .map(|(n, it)| named(n, "user", it))
        .collect();
    conversation.sync(&all);
    // Another one follows that says the same: the result was cleared, and what was stored stays.
    all[2]["content"] = "[cleared]".into();
    all.push(named(4, "user", "ok"));
    let plan = conversation.sync(&all);
    assert_eq!((plan.aligned, plan.new.len()), (Aligned::Exact, 1), "{plan:?}");
    assert_eq!(conversation.texts(), ["ask", "call", "a long result", "yes", "ok"]);
    // None follows: the message was edited, and is another one.
    all[4]["content"] = "no".into();
    all.push(named(5, "assistant", "Done."));
    let plan = conversation.sync(&all);
    assert_eq!((plan.aligned, plan.new.len()), (Aligned::Branch, 2), "{plan:?}");
    assert_eq!(conversation.texts()[4..], ["ok", "no", "Done."]);
    assert_ne!(plan.new[0].id.as_str(), "m4");
    assert_eq!(conversation.sync(&all).new.len(), 0);
}

#[test]
fn behind_a_message_that_others_stored_on_a_branch_the_parent_is_that_message() {
    let named =
        |id: &str, content: &str| json!({"role": "user", "content": content, "message_id": id});
    let mut conversation = Conversation::default();
    conversation.save("g1", "user", "one", "2026-11-20T10:00:00Z");
    conversation.save("g2", "user", "two", "2026-11-20T10:00:02Z");
    let answer = say("assistant", "an answer");
    let plan = conversation.sync(&[named("g1", "one"), answer.clone()]);
    assert_eq!(plan.aligned, Aligned::Branch);
    let all = [named("g1", "one"), answer, named("g2", "two"), say("assistant", "another")];
    let plan = conversation.sync(&all);
    assert_eq!(plan.new.len(), 1, "{plan:?}");
    let parent = plan.new[0].parent.as_ref().map(MessageId::as_str);
    assert!(matches!(parent, None | Some("g2")), "{plan:?}");
}

#[test]
fn a_cut_list_that_comes_after_a_longer_one_stores_nothing() {
    let contents: Vec<String> = (0..12).map(|n| format!("message {n} of a conversation")).collect();
    let all = texts(&contents);
    let mut conversation = Conversation::default();
    conversation.sync(&all[..10]);
    assert_eq!(conversation.sync(&all[6..12]).aligned, Aligned::Inferred);
    let late = conversation.sync(&all[5..11]);
    assert_eq!((late.aligned, late.new.len(), late.known), (Aligned::Inferred, 0, 6));
    assert_eq!(conversation.texts(), contents);
}

#[test]
fn a_list_behind_a_message_goes_on_from_it() {
    let mut conversation = Conversation::default();
    conversation.save("own", "user", "hi", "2026-11-20T10:00:00Z");
    let after = |id: &str| json!({"after": id});
    let first = conversation.sync_with(&turns(&["hello", "yes"]), &after("own")).expect("a plan");
    assert_eq!(first.aligned, Aligned::Exact);
    let again = conversation.sync_with(&turns(&["hello", "yes"]), &after("own")).expect("a plan");
    assert_eq!((again.aligned, again.new.len()), (Aligned::Exact, 0));
    let tail = again.tail.expect("a tail");
    let next = conversation.sync_with(&turns(&["yes"]), &after(tail.as_str())).expect("a plan");
    assert_eq!((next.aligned, next.new.len()), (Aligned::Exact, 1));
    let other = conversation.sync_with(&turns(&["no"]), &after("own")).expect("a plan");
    assert_eq!(other.branch_of.as_ref().map(MessageId::as_str), Some("own"));
    assert_eq!(conversation.texts(), ["hi", "hello", "yes", "yes", "no"]);
}

#[test]
fn messages_at_the_head_are_stored_when_they_change() {
    let with =
        |system: &str, contents: &[&str]| [vec![say("system", system)], turns(contents)].concat();
    let all = ["hi", "hello", "yes", "ok"];
    for (policy, expected) in [
        ("changed", vec!["S1", "hi", "S2", "hello", "yes", "S3", "ok"]),
        ("first", vec!["S1", "hi", "hello", "yes", "ok"]),
        ("ignore", vec!["hi", "hello", "yes", "ok"]),
    ] {
        let mut conversation = Conversation::default();
        let mut sync = |system: &str, n: usize| {
            let fields = json!({"system": policy});
            conversation.sync_with(&with(system, &all[..n]), &fields).expect("a plan")
        };
        sync("S1", 1);
        assert_eq!(sync("S2", 1).new.len(), 0, "nothing is new, so nothing is stored");
        sync("S2", 2);
        sync("S2", 3);
        let plan = sync("S3", 4);
        assert_eq!(plan.known, 3);
        sync("S1", 2);
        assert_eq!(conversation.texts(), expected, "{policy}");
    }
    // A head in the middle of a rewritten past is no obstacle.
    let mut conversation = Conversation::default();
    let long = "Which of the two flats is nearer to the river?";
    conversation.sync(&with("S1", &["hi", "hello", long]));
    conversation.sync(&with("S2", &["hi", "hello", long, "the first one"]));
    let plan = conversation.sync(&with("S2", &[long, "the first one", "thanks"]));
    assert_eq!(plan.aligned, Aligned::Inferred);
}

#[test]
fn the_order_is_that_of_the_list_whatever_the_times() {
    let at = |content: &str, time: &str| json!({"role": "user", "content": content, "timestamp": format!("2026-11-20T{time}Z")});
    let mut conversation = Conversation::default();
    conversation.sync(&[
        at("a", "10:00:00"),
        at("b", "09:00:00"),
        say("user", "c"),
        at("d", "08:00:00"),
    ]);
    assert_eq!(conversation.texts(), ["a", "b", "c", "d"]);
    let estimated =
        |plan: &Plan| plan.new.iter().map(|new| new.is_time_estimated).collect::<Vec<_>>();
    let mut conversation = Conversation::default();
    let plan = conversation.sync(&[at("a", "10:00:00"), say("user", "b")]);
    assert_eq!(estimated(&plan), [false, true]);
    let far = Timestamp::LATEST.to_string();
    let last = json!({"role": "user", "content": "c", "timestamp": far});
    let mut conversation = Conversation::default();
    conversation.sync(&[last, say("user", "d")]);
    assert_eq!(conversation.messages.len(), 2);
}

/// Random numbers that are the same in every run (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let number = number ^ (number >> 31);
        usize::try_from(number % end as u64).expect("a small number")
    }

    /// A content, of which half are very short.
    fn content(&mut self) -> String {
        match self.below(6) {
            0 => "yes".to_owned(),
            1 => "ok".to_owned(),
            2 => "Done.".to_owned(),
            _ => format!("a sentence about {} and {}", self.below(50), self.below(50)),
        }
    }
}

/// What a caller does to its list before it adds a message.
type Rewrite = fn(&mut Numbers, &mut Vec<Value>);

const REWRITES: [(&str, Rewrite); 6] = [
    ("nothing", |_, _| {}),
    ("the head is replaced by a summary", |numbers, list| {
        let end = numbers.below(list.len() - 2) + 1;
        list.splice(..end, [say("user", "Summary: they agreed on all of it.")]);
    }),
    ("the head is cut", |numbers, list| {
        let end = numbers.below(list.len() - 2) + 1;
        list.drain(..end);
    }),
    ("a tool result is cleared", |numbers, list| {
        let place = numbers.below(list.len());
        list[place]["content"] = "[cleared]".into();
    }),
    ("the last answer is generated again", |numbers, list| {
        list.pop();
        let content = numbers.content();
        list.push(say("assistant", &format!("again: {content}")));
    }),
    ("an earlier message is edited, and what followed is gone", |numbers, list| {
        let place = numbers.below(list.len() - 1);
        list.truncate(place);
        list.push(say("user", "What I meant is something else."));
    }),
];

#[test]
fn of_lists_with_a_rewritten_past_these_shares_are_exact_inferred_branches_and_conflicts() {
    const CONVERSATIONS: usize = 500;
    let mut numbers = Numbers(1);
    let mut table = format!("of {CONVERSATIONS} lists, by what was done to the one before\n");
    for (what, rewrite) in REWRITES {
        let (mut found, mut stored_again, mut next_exact) = ([0; 4], 0, 0);
        for _ in 0..CONVERSATIONS {
            let mut conversation = Conversation::default();
            let length = 4 + numbers.below(20);
            let contents: Vec<String> = (0..length).map(|_| numbers.content()).collect();
            let mut list = turns(&contents.iter().map(String::as_str).collect::<Vec<_>>());
            conversation.sync(&list);
            rewrite(&mut numbers, &mut list);
            list.push(say("user", "one more question of the user"));
            let Ok(plan) = conversation.sync_with(&list, &json!({})) else {
                found[3] += 1;
                continue;
            };
            found[plan.aligned as usize] += 1;
            let is_said = |content: &Value| contents.iter().any(|said| content == said.as_str());
            stored_again +=
                plan.new.iter().filter(|new| is_said(&list[new.position]["content"])).count();
            list.push(say("assistant", "one more answer"));
            let next = conversation.sync(&list);
            next_exact += usize::from(next.aligned == Aligned::Exact && next.new.len() == 1);
        }
        let [exact, inferred, branch, conflict] = found;
        table += &format!(
            "{what}: {exact} exact, {inferred} inferred, {branch} branches, {conflict} conflicts; {stored_again} messages \
             stored again; {next_exact} of the next lists exact\n"
        );
    }
    println!("{table}");
    insta::assert_snapshot!("shares", table);
}

/// A message, of which half are very short.
fn content() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec!["yes", "ok", "Done."]).prop_map(str::to_owned),
        "[a-c]{1,2}( [a-c]{1,4}){0,6}",
    ]
}

fn contents(most: usize) -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(content(), 1..most)
}

fn texts(contents: &[String]) -> Vec<Value> {
    turns(&contents.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Fields of an action with a time that is up to 50 ms off.
fn off_by(micros: i64) -> Value {
    let time = Timestamp::parse("2026-11-20T10:00:00Z").expect("a time").micros() + micros;
    json!({"timestamp": Timestamp::from_micros(time).expect("a time").to_string()})
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        rng_seed: RngSeed::Fixed(0x5eed),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn lists_of_one_conversation_in_any_order_are_stored_once_in_their_order(
        contents in contents(24),
        arrivals in prop::collection::vec((any::<prop::sample::Index>(), -50_000..50_000_i64), 1..40),
    ) {
        let all = texts(&contents);
        let mut conversation = Conversation::default();
        let mut longest = 0;
        for (end, clock) in arrivals {
            let end = end.index(all.len()) + 1;
            let plan = conversation.sync_with(&all[..end], &off_by(clock)).expect("a plan");
            prop_assert_eq!(plan.aligned, Aligned::Exact);
            prop_assert_eq!(plan.new.len(), end.saturating_sub(longest));
            longest = longest.max(end);
        }
        prop_assert_eq!(conversation.texts(), contents[..longest].iter().collect::<Vec<_>>());
    }

    #[test]
    fn two_continuations_are_stored_once_each(
        shared in contents(8), one in contents(8), other in contents(8),
        arrivals in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>(), -50_000..50_000_i64), 1..40),
    ) {
        let lists = [[&shared[..], &one].concat(), [&shared[..], &other].concat()];
        let lists = lists.map(|contents| texts(&contents));
        let mut conversation = Conversation::default();
        let mut paths: BTreeSet<Computed> = BTreeSet::new();
        for (is_one, end, clock) in arrivals {
            let all = &lists[usize::from(is_one)];
            let messages = &all[..=end.index(all.len())];
            let plan = conversation.sync_with(messages, &off_by(clock)).expect("a plan");
            // Words that both happen to say at their ends may be taken for the same ones.
            prop_assume!(plan.aligned != Aligned::Inferred);
            let path = list(&body(messages, &json!({}))).path(None);
            paths.extend(&path);
            let places: Vec<usize> = path.iter().map(|id| {
                let id = id.message_id();
                conversation.messages.iter().position(|it| it.id == id).expect("it is stored")
            }).collect();
            prop_assert!(places.is_sorted(), "{:?}", places);
        }
        prop_assert_eq!(conversation.messages.len(), paths.len());
    }

    #[test]
    fn a_list_behind_its_tail_is_always_exact(
        windows in prop::collection::vec((contents(5), any::<bool>()), 1..12),
        begins_with_own in any::<bool>(),
    ) {
        let mut conversation = Conversation::default();
        let mut tail = begins_with_own.then(|| {
            conversation.save("own", "user", "hi", "2026-11-20T09:00:00Z");
            "own".to_owned()
        });
        let mut expected: Vec<String> = begins_with_own.then(|| "hi".to_owned()).into_iter().collect();
        for (contents, twice) in windows {
            let fields = tail.as_ref().map_or(json!({}), |tail| json!({"after": tail}));
            for _ in 0..=usize::from(twice) {
                let plan = conversation.sync_with(&texts(&contents), &fields).expect("a plan");
                prop_assert_eq!(plan.aligned, Aligned::Exact);
                tail = plan.tail.map(|id| id.to_string());
            }
            expected.extend(contents);
        }
        prop_assert_eq!(conversation.texts(), expected);
    }

    #[test]
    fn a_caller_that_rewrites_its_past_loses_nothing(
        contents in contents(16),
        more in prop::collection::vec((content(), 0..3_u8, any::<prop::sample::Index>()), 1..8),
    ) {
        let mut conversation = Conversation::default();
        let mut all = texts(&contents);
        conversation.sync(&all);
        let mut said = contents;
        for (content, rewrite, at) in more {
            match rewrite {
                // The head is summarised.
                1 => {
                    let end = at.index(all.len());
                    all.splice(..end, [say("user", "Summary: they agreed on all of it.")]);
                }
                // A result is cleared.
                2 => {
                    let place = at.index(all.len());
                    all[place]["content"] = "[cleared]".into();
                }
                _ => {}
            }
            all.push(say("user", &content));
            said.push(content);
            match conversation.sync_with(&all, &json!({})) {
                Ok(plan) => {
                    let id = plan.tail.expect("a tail");
                    let stored = conversation.messages.iter().find(|it| it.id == id);
                    prop_assert_eq!(stored.map(|it| it.content.text()), said.last().map(String::as_str));
                }
                // A dead letter: nothing is stored, and nothing is lost.
                Err(undecided) => {
                    prop_assert_eq!(undecided, Undecided::NothingInCommon);
                    return Ok(());
                }
            }
        }
        let stored = conversation.texts();
        for content in &said {
            prop_assert!(stored.contains(&content.as_str()), "{} of {:?}", content, stored);
        }
    }
}
