//! Values that are stored and compared for years: they must never change.
//!
//! A failure here means that redelivered messages would be stored twice, or that duplicates would
//! become conflicts. Fix the code, never the values.

use domain::action::{Action, SaveMessage};
use domain::ids::{ConversationKey, SessionId, TenantId};
use fixtures::examples::example;

use fixtures::decoded;

fn saved(body: &str) -> SaveMessage {
    match decoded(body) {
        Ok(Action::SaveMessage(save)) => *save,
        other => panic!("{body}: {other:?}"),
    }
}

fn hash_of(name: &str) -> String {
    let hash = saved(example(name).expect(name)).body_hash();
    hash.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_conversation_of_a_session_never_changes() {
    let conversation = |tenant: &str, session: &str| {
        let tenant = TenantId::new(tenant).expect("an id");
        let session = SessionId::new(session).expect("an id");
        ConversationKey::of_session(tenant, &session).conversation.as_str().to_owned()
    };
    assert_eq!(conversation("tenant123", "session_abc"), "337defa1-92d3-5833-8d95-05541d1fab15");
    assert_eq!(conversation("ñ/:", "+7 900 {1}"), "f60bd280-5712-5c32-9ce8-20eff19653a4");
}

#[test]
fn the_derived_id_of_a_message_never_changes() {
    let derived = saved(
        r#"{"action_type":"conversation.save_message","tenant_id":"tenant123","session_id":"session_abc","timestamp":"2026-11-20T09:30:00.250Z","role":"user","content":"sí"}"#,
    );
    assert_eq!(derived.message.id.as_str(), "b37ef14f-223b-5779-bea2-e5721cd36b42");
}

#[test]
fn the_hash_of_a_body_never_changes() {
    assert_eq!(hash_of("conversation.save_message"), "dccc575a270c951e08fa80eb363ce379");
    assert_eq!(hash_of("conversation.save_message.empty"), "23c5db76bddd0e9002f05370eab7e58b");
    assert_eq!(hash_of("conversation.save_message.parts"), "cc43066cca4cd91e9989ce84660de468");
    assert_eq!(hash_of("conversation.save_message.tool_calls"), "f2e4e68b421b2b4ca2ff9888229a97a1");
    assert_eq!(
        hash_of("conversation.save_message.tool_result"),
        "8381f61b9b47fcdebcfcd19f9e28defa"
    );
}
