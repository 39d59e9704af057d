//! Every example of an action decodes to its snapshot.

use std::collections::BTreeSet;
use std::path::Path;

use domain::action::{Action, ActionKind, ConversationSource, Identity};
use domain::message::{Json, Role};
use fixtures::examples::{ACTIONS, FIRST_AGENTS, example};

use fixtures::{NEW_ID, decoded};

#[test]
fn every_example_decodes_to_its_snapshot() {
    for example in ACTIONS {
        let action =
            decoded(example.body).unwrap_or_else(|refusal| panic!("{}: {refusal}", example.name));
        assert!(example.name.starts_with(action.kind().as_str()), "{}", example.name);
        insta::assert_debug_snapshot!(example.name, action);
    }
}

#[test]
fn every_example_file_is_listed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/actions");
    let files: BTreeSet<String> = std::fs::read_dir(folder)
        .expect("the folder of examples")
        .map(|file| file.expect("a file").file_name().into_string().expect("UTF-8"))
        .collect();
    let listed = ACTIONS.iter().map(|example| format!("{}.json", example.name)).collect();
    assert_eq!(files, listed);
}

#[test]
fn every_action_has_a_flat_and_a_nested_example() {
    for kind in ActionKind::ALL {
        let body = |name: &str| example(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert!(!body(kind.as_str()).contains("\"data\""), "{kind}");
        assert!(body(&format!("{kind}.nested")).contains("\"data\""), "{kind}");
    }
}

#[test]
fn what_the_first_agents_send_works_unchanged() {
    let [save, context, closed] = FIRST_AGENTS.map(|name| {
        decoded(example(name).expect("an example")).unwrap_or_else(|refusal| panic!("{refusal}"))
    });
    for action in [&save, &context, &closed] {
        let common = action.common();
        assert_eq!(common.key.tenant.as_str(), "tenant123");
        assert_eq!(common.session.as_str(), "session_abc");
        assert_eq!(common.key, save.common().key);
        assert_eq!(common.conversation_is_explicit, ConversationSource::FromSession);
    }
    let Action::SaveMessage(save) = save else { panic!("{save:?}") };
    assert_eq!(save.identity, Identity::Random { redelivered: false });
    assert_eq!(save.message.id.as_str(), NEW_ID.to_string());
    assert_eq!(save.message.role, Role::Assistant);
    assert_eq!(save.message.tokens_estimate, Some(150));
    assert_eq!(save.message.model_name.as_deref(), Some("llama3-70b-8192"));
    assert_eq!(save.common.tenant_tier.as_deref(), Some("professional"));
    assert_eq!(
        save.message.metadata.as_ref().map(Json::as_str),
        Some(r#"{"tenant_tier":"professional"}"#)
    );
    assert_eq!(context.common().tenant_tier.as_deref(), Some("professional"));
    assert!(matches!(context, Action::GetContext(..)));
    assert!(matches!(closed, Action::SessionClosed(..)));
}
