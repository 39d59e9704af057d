//! The shapes in which programs send messages: each is met, or the refusal names the field and the remedy.

use domain::action::Action;
use domain::envelope::Envelope;
use fixtures::decoded_with;
use fixtures::shapes::{Expected, shapes};

#[test]
fn every_shape_is_met_or_its_refusal_names_the_remedy() {
    for shape in shapes() {
        let name = &shape.name;
        match (decoded_with(&shape.body, &Envelope::default()), shape.expected) {
            (Ok(Action::SaveMessage(save)), Expected::Saved { role, text, .. }) => {
                let message = &save.message;
                assert_eq!(
                    (message.role.as_str(), message.content.text()),
                    (&*role, &*text),
                    "{name}"
                );
            }
            (Ok(Action::Feedback(_, feedback)), Expected::Rated(number)) => {
                assert_eq!(feedback.satisfaction.get(), number, "{name}");
            }
            (Err(refusal), Expected::Refused { reason, field, words }) => {
                let refused = (refusal.reason.as_str(), refusal.field.as_deref());
                assert_eq!(refused, (&*reason, field.as_deref()), "{name}");
                assert!(refusal.detail.contains(&words), "{name}: {refusal}");
            }
            (result, expected) => panic!("{name}: {result:?} instead of {expected:?}"),
        }
    }
}
