//! No text of the product uses a banned phrase: the private vocabulary that this project once had, and
//! metaphors where the field has a term.
//!
//! `banned.txt` beside this file is the list. It is searched for in eight places: help texts, the metrics
//! catalogue, alerts, string literals (log lines, errors, output), SQL names, the names of types and
//! fields (which serde makes JSON keys of), `docs/`, and the documents at the top.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod phrases;
mod sources;

use phrases::{Banned, Found};
use sources::Source;
use testkit::fleet::Fleet;

/// Places where a banned phrase is the honest word: source, part of the place's name, phrase.
const EXCEPTIONS: &[(Source, &str, &str)] = &[
    // The client library's name for an AMQP value.
    (Source::Names, "crates/broker/src/wire.rs", "void"),
    (Source::Names, "crates/broker/src/lossless.rs", "void"),
];

#[test]
fn the_metrics_catalogue_uses_no_banned_phrase() {
    assert_plain(Source::Metrics, &sources::metrics());
}

#[test]
fn alerts_use_no_banned_phrase() {
    assert_plain(Source::Alerts, &sources::alerts());
}

#[test]
fn log_lines_and_errors_use_no_banned_phrase() {
    assert_plain(Source::Strings, &sources::strings());
}

#[test]
fn sql_uses_no_banned_phrase() {
    assert_plain(Source::Sql, &sources::sql());
}

#[test]
fn types_fields_and_json_keys_use_no_banned_phrase() {
    assert_plain(Source::Names, &sources::names());
}

#[test]
fn docs_use_no_banned_phrase() {
    assert_plain(Source::Docs, &sources::docs());
}

#[test]
fn the_documents_at_the_top_use_no_banned_phrase() {
    assert_plain(Source::Readme, &sources::top_level_documents());
}

#[tokio::test]
async fn help_texts_use_no_banned_phrase() {
    let fleet = Fleet::new().await;
    assert_plain(Source::Help, &sources::help(&fleet));
}

#[test]
fn a_planted_phrase_is_found_in_each_source() {
    let banned = Banned::read();
    for source in Source::ALL {
        for (planted, phrase) in source.planted() {
            let texts = source.read("planted", planted);
            let found = banned.search(&texts);
            let phrases: Vec<_> = found.iter().map(|it| it.phrase.as_str()).collect();
            assert_eq!(phrases, [*phrase], "{source:?}: {planted}");
        }
    }
}

#[test]
fn every_exception_is_still_needed() {
    let banned = Banned::read();
    for (source, place, phrase) in EXCEPTIONS {
        let found = banned.search(&source.all());
        let needed = found.iter().any(|it| it.place.contains(place) && it.phrase == *phrase);
        assert!(needed, "{source:?} has no `{phrase}` in {place} any more: remove the exception");
    }
}

fn assert_plain(source: Source, texts: &[sources::Text]) {
    assert!(texts.len() >= source.at_least(), "{source:?}: only {} texts were read", texts.len());
    let excepted = |found: &Found| {
        EXCEPTIONS.iter().any(|(of, place, phrase)| {
            *of == source && found.place.contains(place) && found.phrase == *phrase
        })
    };
    let found: Vec<_> =
        Banned::read().search(texts).into_iter().filter(|it| !excepted(it)).collect();
    let lines: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert!(found.is_empty(), "{} banned phrases:\n{}", found.len(), lines.join("\n"));
}
