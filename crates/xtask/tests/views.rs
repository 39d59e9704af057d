//! JSON that users see is that of a view, never that of a row: no type of `database` whose columns are those of its
//! fields (sqlx's derive `FromRow`) is serialised. A renamed column would rename a field of that JSON.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::path::Path;

use testkit::place::workspace;

#[test]
fn no_type_derives_both_a_row_and_json() {
    let mut checked = 0;
    check(&workspace().join("crates/database/src"), &mut checked);
    assert!(checked > 20, "only {checked} files were read");
}

#[test]
fn a_type_that_derives_both_is_found() {
    assert!(both("#[derive(FromRow)]\nstruct A;\n#[derive(Serialize)]\nstruct B;").is_empty());
    assert!(both("#[derive(Serialize)]\nstruct A;\nimpl FromRow<'_, PgRow> for A {}").is_empty());
    let derived =
        "#[derive(Debug, sqlx::FromRow, serde::Serialize)]\npub struct A {\n    b: u8,\n}";
    assert_eq!(both(derived), ["pub struct A {"]);
    let apart = "/// Text.\n#[derive(FromRow)]\n/// More.\n#[derive(\n    Debug,\n    Serialize,\n)]\nenum B {}";
    assert_eq!(both(apart), ["enum B {}"]);
}

fn check(dir: &Path, checked: &mut usize) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            check(&path, checked);
        } else if path.extension().is_some_and(|it| it == "rs") {
            *checked += 1;
            let text = std::fs::read_to_string(&path).unwrap();
            let both = both(&text);
            assert!(
                both.is_empty(),
                "{}: {both:?} derive FromRow and Serialize; read the columns by name",
                path.display()
            );
        }
    }
}

/// The first lines of the items that derive both traits.
fn both(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    // The attributes since the last item.
    let mut attributes = String::new();
    for line in text.lines() {
        let is_item =
            ["pub struct ", "pub enum ", "pub(crate) struct ", "struct ", "enum ", "impl"]
                .iter()
                .any(|item| line.trim_start().starts_with(item));
        if !is_item {
            attributes.push_str(line);
            continue;
        }
        let derives: String =
            attributes.split("#[derive(").skip(1).filter_map(|it| it.split(")]").next()).collect();
        if derives.contains("FromRow") && derives.contains("Serialize") {
            found.push(line);
        }
        attributes.clear();
    }
    found
}
