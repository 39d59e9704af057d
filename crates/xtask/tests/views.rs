//! JSON that users see is that of a view, never that of a row: no type of `database` that reads itself from a row
//! (sqlx's `FromRow`) is serialised. A renamed column would rename a field of that JSON.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeSet;
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use testkit::place::workspace;

/// Files that may still serialise rows.
const NOT_YET: &[&str] = &["dead_letters/record.rs", "dead_letters/replays.rs"];

#[test]
fn no_type_is_both_a_row_and_json() {
    let root = workspace().join("crates/database/src");
    let mut checked = 0;
    check(&root, &root, &mut checked);
    assert!(checked > 20, "only {checked} files were read");
}

#[test]
fn a_type_that_is_both_is_found_by_its_derives_and_by_its_impls() {
    let both = |code: &str| both(code.parse().unwrap());
    let imported =
        "use serde::Serialize; use sqlx::FromRow; #[derive(Serialize)] struct A { b: u8 }";
    assert!(both(imported).is_empty());
    assert!(both("#[derive(FromRow)] struct A; #[derive(Serialize)] struct B;").is_empty());
    let names = BTreeSet::from(["A".to_owned()]);
    assert_eq!(
        both("#[derive(Debug, sqlx::FromRow, serde::Serialize)] pub struct A { b: u8 }"),
        names
    );
    assert_eq!(both("/// Text.\n#[derive(FromRow)] #[derive(Serialize)] pub struct A;"), names);
    assert_eq!(
        both(
            "mod m { #[derive(Serialize)] struct A<'a>(&'a str); impl<'r> FromRow<'r, PgRow> for A<'r> {} }"
        ),
        names
    );
}

fn check(dir: &Path, root: &Path, checked: &mut usize) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            check(&path, root, checked);
        } else if path.extension().is_some_and(|it| it == "rs") {
            *checked += 1;
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            let both = both(std::fs::read_to_string(&path).unwrap().parse().unwrap());
            if NOT_YET.contains(&name) {
                assert!(!both.is_empty(), "{name} need no longer be in NOT_YET");
            } else {
                assert!(
                    both.is_empty(),
                    "{name}: {both:?} are rows and JSON; serialise a view instead"
                );
            }
        }
    }
}

/// The names of the types that implement both traits.
fn both(code: TokenStream) -> BTreeSet<String> {
    let mut found = Vec::new();
    collect(code, &mut found);
    let of = |wanted: &str| -> BTreeSet<String> {
        found.iter().filter(|(of, _)| of == wanted).map(|(_, name)| name.clone()).collect()
    };
    of("FromRow").intersection(&of("Serialize")).cloned().collect()
}

/// The traits that types derive or that are implemented for them, with the names of the types.
fn collect(code: TokenStream, found: &mut Vec<(String, String)>) {
    // The traits of the derives, or of the `impl`, whose type is still to come.
    let mut traits: Vec<String> = Vec::new();
    let mut named = false;
    for token in code {
        match token {
            TokenTree::Ident(word) if named => {
                let name = word.to_string();
                found.extend(traits.drain(..).map(|of| (of, name.clone())));
                named = false;
            }
            TokenTree::Ident(word) => match word.to_string().as_str() {
                "struct" | "enum" | "for" => named = true,
                "impl" | "fn" | "mod" | "use" => traits.clear(),
                other => traits.push(other.to_owned()),
            },
            TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket => {
                // An attribute: its derives belong to the item after it.
                let mut inside = group.stream().into_iter();
                if inside.next().is_some_and(|word| word.to_string() == "derive")
                    && let Some(TokenTree::Group(derives)) = inside.next()
                {
                    traits.extend(derives.stream().into_iter().map(|word| word.to_string()));
                }
            }
            TokenTree::Group(group) => {
                collect(group.stream(), found);
                if group.delimiter() == Delimiter::Brace {
                    traits.clear();
                }
            }
            // The end of an item, as the end of its braces above.
            TokenTree::Punct(end) if end.as_char() == ';' => traits.clear(),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}
