//! The eight places that are searched, and how each is read.

use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use metrics::definitions;
use proc_macro2::{TokenStream, TokenTree};
use testkit::fleet::Fleet;
use testkit::place::workspace;

/// A text and where it stands.
pub(crate) struct Text {
    pub(crate) place: String,
    pub(crate) first_line: usize,
    pub(crate) text: String,
}

/// A place that is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Help,
    Metrics,
    Alerts,
    Strings,
    Sql,
    Names,
    Docs,
    Readme,
}

impl Source {
    pub(crate) const ALL: [Self; 8] = [
        Self::Help,
        Self::Metrics,
        Self::Alerts,
        Self::Strings,
        Self::Sql,
        Self::Names,
        Self::Docs,
        Self::Readme,
    ];

    /// How many texts there are at the least: fewer would mean that they were not found.
    pub(crate) fn at_least(self) -> usize {
        match self {
            Self::Help => 15,
            Self::Metrics => 30,
            Self::Alerts => 5,
            Self::Strings | Self::Names => 200,
            Self::Sql => 5,
            Self::Docs => 25,
            Self::Readme => 3,
        }
    }

    /// A content of such a place with a banned phrase in it, and the phrase.
    pub(crate) fn planted(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Help => &[("Usage: verbatim\n\n  Sends every\n  letter to its queue", "letter")],
            Self::Metrics => {
                &[("verbatim_keeper_total", "keeper"), ("Deliveries given\nback.", "given back")]
            }
            Self::Alerts => &[("summary: \"Redis is away\"", "is away")],
            Self::Strings => &[
                (r#"fn f() { tracing::warn!(queue, "a new reign begins"); }"#, "reign"),
                (r#"fn f() { println!("all\ntold"); }"#, "told"),
                ("/// What was set\n/// apart.\nstruct A;", "set apart"),
                (r#"#[error("{0} does not let us in")] struct E(u8);"#, "let us in"),
            ],
            Self::Sql => &[("CREATE TABLE t (last_journey timestamptz)", "journey")],
            Self::Names => &[
                ("struct A { told_why: u8 }", "told why"),
                ("enum E { GoesHome }", "goes home"),
                ("struct A { letters: u8 }", "letters"),
            ],
            Self::Docs => &[("A hot copy is\nvoid.", "void")],
            Self::Readme => &[("What is broken is mended.", "mended")],
        }
    }

    /// Reads a content of such a place.
    pub(crate) fn read(self, place: &str, content: &str) -> Vec<Text> {
        match self {
            Self::Strings => literals(place, content),
            Self::Names => identifiers(place, content),
            _ => vec![text(place, content)],
        }
    }

    /// All texts of the place, but help: for that processes have to run.
    pub(crate) fn all(self) -> Vec<Text> {
        match self {
            Self::Help => Vec::new(),
            Self::Metrics => metrics(),
            Self::Alerts => alerts(),
            Self::Strings => strings(),
            Self::Sql => sql(),
            Self::Names => names(),
            Self::Docs => docs(),
            Self::Readme => top_level_documents(),
        }
    }
}

/// What every process and every command prints for `--help`.
pub(crate) fn help(fleet: &Fleet) -> Vec<Text> {
    let processes = domain::fleet::processes();
    let mut open: Vec<(&str, Vec<String>)> =
        processes.iter().map(|it| (it.name(), Vec::new())).collect();
    let mut texts = Vec::new();
    while let Some((process, command)) = open.pop() {
        let output = fleet.command(process).args(&command).arg("--help").output().unwrap();
        assert!(output.status.success(), "{process} {command:?} --help");
        let help = String::from_utf8(output.stdout).unwrap();
        let subcommands = help.split("\nCommands:\n").nth(1).unwrap_or_default();
        for line in subcommands.lines().take_while(|line| !line.is_empty()) {
            let name = line.strip_prefix("  ").and_then(|it| it.split(' ').next());
            if let Some(name) = name.filter(|it| !it.is_empty() && *it != "help") {
                open.push((process, [command.clone(), vec![name.to_owned()]].concat()));
            }
        }
        texts.push(text(&format!("{process} {} --help", command.join(" ")), &help));
    }
    texts
}

/// Names, help texts and label values of all metrics.
pub(crate) fn metrics() -> Vec<Text> {
    definitions()
        .iter()
        .map(|definition| text(definition.name, &format!("{definition:?}")))
        .collect()
}

/// Prometheus' rules and Alertmanager's routes.
pub(crate) fn alerts() -> Vec<Text> {
    files(&["deploy"], &["yml"]).into_iter().map(read).collect()
}

/// String literals of all code: log lines, errors, output, and doc comments, of which clap makes help.
pub(crate) fn strings() -> Vec<Text> {
    code().flat_map(|Text { place, text, .. }| literals(&place, &text)).collect()
}

/// The schema, other SQL files, and Redis' scripts.
pub(crate) fn sql() -> Vec<Text> {
    files(&["crates"], &["sql", "lua"]).into_iter().map(read).collect()
}

/// The names of everything in the code. Serde makes JSON keys and values of some.
pub(crate) fn names() -> Vec<Text> {
    code().flat_map(|Text { place, text, .. }| identifiers(&place, &text)).collect()
}

/// Everything under `docs/`, pictures included.
pub(crate) fn docs() -> Vec<Text> {
    files(&["docs"], &["md", "json", "svg"]).into_iter().map(read).collect()
}

/// The documents at the top of the repository.
pub(crate) fn top_level_documents() -> Vec<Text> {
    ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| read(workspace().join(name))).into()
}

fn code() -> impl Iterator<Item = Text> {
    let this = Path::new("xtask/tests/plain_words");
    let files = files(&["crates", "tests"], &["rs"]).into_iter();
    files.filter(move |path| !path.parent().is_some_and(|it| it.ends_with(this))).map(read)
}

/// The string literals of Rust code. The lines of a doc comment are one text, as they are read.
fn literals(place: &str, code: &str) -> Vec<Text> {
    let mut texts: Vec<Text> = Vec::new();
    let mut last_was_doc = false;
    each_token(tokens(place, code), &mut |token, in_doc| {
        let TokenTree::Literal(literal) = token else { return };
        let written = literal.to_string();
        if !written.contains('"') {
            return;
        }
        let plain =
            ["\\n", "\\t", "\\r"].into_iter().fold(written, |it, escape| it.replace(escape, " "));
        match texts.last_mut().filter(|_| in_doc && last_was_doc) {
            Some(before) => {
                before.text.push('\n');
                before.text.push_str(&plain);
            }
            None => {
                let first_line = literal.span().start().line;
                texts.push(Text { place: place.to_owned(), first_line, text: plain });
            }
        }
        last_was_doc = in_doc;
    });
    texts
}

/// The identifiers of Rust code.
fn identifiers(place: &str, code: &str) -> Vec<Text> {
    let mut texts = Vec::new();
    each_token(tokens(place, code), &mut |token, _| {
        if let TokenTree::Ident(ident) = token {
            let first_line = ident.span().start().line;
            texts.push(Text { place: place.to_owned(), first_line, text: ident.to_string() });
        }
    });
    texts
}

fn tokens(place: &str, code: &str) -> TokenStream {
    TokenStream::from_str(code).unwrap_or_else(|error| panic!("{place} is no Rust: {error}"))
}

/// Every token, also those in groups; and whether it belongs to a doc comment.
fn each_token(tokens: TokenStream, see: &mut impl FnMut(&TokenTree, bool)) {
    fn walk(tokens: TokenStream, in_doc: bool, see: &mut impl FnMut(&TokenTree, bool)) {
        for token in tokens {
            if let TokenTree::Group(group) = &token {
                let first = group.stream().into_iter().next();
                let is_doc = matches!(&first, Some(TokenTree::Ident(ident)) if ident == "doc");
                walk(group.stream(), is_doc, see);
            } else {
                see(&token, in_doc);
            }
        }
    }
    walk(tokens, false, see);
}

fn text(place: &str, content: &str) -> Text {
    Text { place: place.to_owned(), first_line: 1, text: content.to_owned() }
}

fn read(path: PathBuf) -> Text {
    let place = path.strip_prefix(workspace()).unwrap().display().to_string();
    text(&place, &std::fs::read_to_string(path).unwrap())
}

/// The files below some folders that end in one of these ways.
fn files(folders: &[&str], endings: &[&str]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open: Vec<PathBuf> = folders.iter().map(|it| workspace().join(it)).collect();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let ending = path.extension().and_then(|it| it.to_str()).unwrap_or_default();
            if path.is_dir() {
                open.push(path);
            } else if endings.contains(&ending) {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}
