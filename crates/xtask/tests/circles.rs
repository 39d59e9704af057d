//! No circle of files: the files of a crate can be read one after the other, each after those that it needs.
//!
//! A file needs the files that it declares with `mod`, and those that define what its `use` declarations and
//! its full paths (`crate::`, `super::`, `self::`) name. A name that another file only re-exports leads to the
//! file that defines it. Tests inside a file do not count.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use serde_json::Value;

/// The path of a module, from the root of its crate.
type Module = Vec<String>;

/// What a file contains, as far as it matters here.
#[derive(Debug, Default)]
struct File {
    /// Modules in files of their own.
    children: Vec<String>,
    /// Names of the items that it defines.
    items: BTreeSet<String>,
    /// Paths of its `use` declarations, and the names that they get; `*` for a glob.
    uses: Vec<(Vec<String>, String)>,
    /// Full paths in its code.
    paths: Vec<Vec<String>>,
}

/// The files of a crate, by their modules.
struct Crate(BTreeMap<Module, File>);

#[test]
fn no_crate_has_a_circle_of_files() {
    let mut metadata =
        testkit::cargo::command(&["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let metadata: Value = serde_json::from_slice(&metadata.output().unwrap().stdout).unwrap();
    let mut checked = 0;
    for package in metadata["packages"].as_array().unwrap() {
        for target in package["targets"].as_array().unwrap() {
            if !["lib", "bin"].contains(&target["kind"][0].as_str().unwrap()) {
                continue;
            }
            let root = PathBuf::from(target["src_path"].as_str().unwrap());
            let files = Crate::read(&root, &|path| std::fs::read_to_string(path).ok());
            assert_eq!(files.circle(), None, "in {}", package["name"]);
            checked += files.0.len();
        }
    }
    assert!(checked > 250, "only {checked} files were read");
}

#[test]
fn a_circle_is_found_by_use_by_full_path_and_through_a_re_export() {
    let circle = |a: &str, b: &str| {
        let sources = [("lib.rs", "mod a; mod b; pub use a::A;"), ("a.rs", a), ("b.rs", b)];
        let read = |path: &Path| {
            let found = sources.iter().find(|(name, _)| path == Path::new(name));
            found.map(|(_, text)| (*text).to_owned())
        };
        Crate::read(Path::new("lib.rs"), &read).circle()
    };
    let found = Some("a → b → a".to_owned());
    let a = "use crate::b::B; pub struct A(B);";
    assert_eq!(circle(a, "use super::a::A; pub struct B; fn f(_: A) {}"), found);
    assert_eq!(circle(a, "pub struct B; fn f(_: crate::a::A) {}"), found);
    assert_eq!(circle(a, "use crate::{A as Other}; pub struct B; fn f(_: Other) {}"), found);
    assert_eq!(circle(a, "pub struct B; pub(in crate::a) fn f() {}"), None);
    assert_eq!(circle(a, "pub struct B; #[cfg(test)] mod tests { use crate::a::A; }"), None);
    let parent = "use super::Missing; pub struct B;";
    assert_eq!(circle(a, parent), Some("the root → a → b → the root".to_owned()));
}

impl Crate {
    fn read(root: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Self {
        let mut files = Self(BTreeMap::new());
        let text = read(root).unwrap();
        files.add(root, Vec::new(), &text, read);
        files
    }

    fn add(
        &mut self,
        path: &Path,
        module: Module,
        text: &str,
        read: &dyn Fn(&Path) -> Option<String>,
    ) {
        let tokens: TokenStream =
            text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut file = File::default();
        file.walk(tokens);
        let is_directory = ["lib.rs", "main.rs", "mod.rs"].map(Path::new);
        let base = match path.file_name() {
            Some(name) if is_directory.contains(&Path::new(name)) => path.with_file_name(""),
            _ => path.with_extension(""),
        };
        for child in file.children.clone() {
            let paths = [base.join(format!("{child}.rs")), base.join(&child).join("mod.rs")];
            let found = paths.iter().find_map(|path| Some((path, read(path)?)));
            let (path, text) =
                found.unwrap_or_else(|| panic!("{module:?} has no file for {child}"));
            self.add(path, [module.clone(), vec![child]].concat(), &text, read);
        }
        self.0.insert(module, file);
    }

    /// The first circle, as text.
    fn circle(&self) -> Option<String> {
        let mut done = BTreeSet::new();
        self.0.keys().find_map(|module| self.circle_from(module, &mut Vec::new(), &mut done))
    }

    fn circle_from(
        &self,
        module: &Module,
        way: &mut Vec<Module>,
        done: &mut BTreeSet<Module>,
    ) -> Option<String> {
        if let Some(at) = way.iter().position(|it| it == module) {
            let circle = way[at..].iter().chain([module]).map(|it| match it.as_slice() {
                [] => "the root".to_owned(),
                names => names.join("::"),
            });
            return Some(circle.collect::<Vec<_>>().join(" → "));
        }
        if done.contains(module) {
            return None;
        }
        way.push(module.clone());
        let found = self.needs(module).iter().find_map(|next| self.circle_from(next, way, done));
        way.pop();
        done.insert(module.clone());
        found
    }

    fn needs(&self, module: &Module) -> BTreeSet<Module> {
        let file = &self.0[module];
        let children = file
            .children
            .iter()
            .map(|child| [module.as_slice(), std::slice::from_ref(child)].concat());
        let named = file.uses.iter().map(|(path, _)| path).chain(&file.paths);
        let named = named.filter_map(|path| {
            let (start, rest) = self.start(path, module)?;
            self.defining(start, rest, 0)
        });
        children.chain(named).filter(|it| it != module).collect()
    }

    /// The module in which a path begins, and its further segments; `None` for another crate's path.
    fn start<'a>(&self, path: &'a [String], module: &Module) -> Option<(Module, &'a [String])> {
        match path.first()?.as_str() {
            "crate" => Some((Vec::new(), &path[1..])),
            "self" => Some((module.clone(), &path[1..])),
            "super" => {
                let ups = path.iter().take_while(|it| *it == "super").count();
                Some((module[..module.len().saturating_sub(ups)].to_vec(), &path[ups..]))
            }
            first => {
                let child = [module.as_slice(), &[first.to_owned()]].concat();
                self.0.contains_key(&child).then(|| (child, &path[1..]))
            }
        }
    }

    /// The file that defines what `path`, seen from `module`, names.
    fn defining(&self, mut module: Module, mut path: &[String], depth: usize) -> Option<Module> {
        const DEEPEST: usize = 8;
        while let Some(first) = path.first() {
            let child = [module.as_slice(), std::slice::from_ref(first)].concat();
            if !self.0.contains_key(&child) {
                break;
            }
            (module, path) = (child, &path[1..]);
        }
        let file = &self.0[&module];
        let Some(name) = path.first().filter(|name| !file.items.contains(*name)) else {
            return Some(module);
        };
        let through = |(target, alias): &(Vec<String>, String)| {
            let (start, rest) = self.start(target, &module)?;
            match alias.as_str() {
                "*" => {
                    let rest = [&rest[..rest.len() - 1], std::slice::from_ref(name)].concat();
                    let found = self.defining(start, &rest, depth + 1)?;
                    self.0[&found].items.contains(name).then_some(found)
                }
                alias if alias == name => self.defining(start, rest, depth + 1),
                _ => None,
            }
        };
        if depth == DEEPEST {
            return None;
        }
        if file.uses.iter().any(|(_, alias)| alias == name) {
            return file.uses.iter().find_map(through);
        }
        file.uses.iter().find_map(through).or(Some(module.clone()))
    }
}

impl File {
    fn walk(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            at = self.step(&tokens, at);
        }
    }

    /// Reads what begins at a token; returns where the rest begins.
    fn step(&mut self, tokens: &[TokenTree], at: usize) -> usize {
        const DEFINES: [&str; 8] =
            ["struct", "enum", "trait", "fn", "const", "static", "type", "union"];
        let word = match &tokens[at] {
            TokenTree::Ident(word) => word.to_string(),
            TokenTree::Punct(mark) if mark.as_char() == '#' && is_for_tests(tokens.get(at + 1)) => {
                return end_of_item(tokens, at + 2);
            }
            TokenTree::Group(group) => {
                self.walk(group.stream());
                return at + 1;
            }
            _ => return at + 1,
        };
        let name = tokens.get(at + 1).and_then(|it| match it {
            TokenTree::Ident(name) => Some(name.to_string()),
            _ => None,
        });
        match (word.as_str(), name) {
            ("mod", Some(name)) => {
                if is_mark(tokens.get(at + 2), ';') {
                    self.children.push(name);
                }
                at + 2
            }
            ("use", _) => {
                let end = (at..tokens.len()).find(|n| is_mark(tokens.get(*n), ';'));
                let end = end.unwrap_or(tokens.len());
                self.tree(&tokens[at + 1..end], &[]);
                end
            }
            ("pub", _) if is_group(tokens.get(at + 1), Delimiter::Parenthesis) => at + 2,
            ("crate" | "super" | "self", _) if is_mark(tokens.get(at + 1), ':') => {
                let (path, end) = path(tokens, at);
                self.paths.push(path);
                end
            }
            ("macro_rules", _) => {
                if let Some(TokenTree::Ident(name)) = tokens.get(at + 2) {
                    self.items.insert(name.to_string());
                }
                at + 3
            }
            (word, Some(name)) if DEFINES.contains(&word) => {
                self.items.insert(name);
                at + 2
            }
            _ => at + 1,
        }
    }

    /// A tree of a `use` declaration.
    fn tree(&mut self, tokens: &[TokenTree], prefix: &[String]) {
        let (mut names, mut end) = path(tokens, 0);
        names = [prefix, &names].concat();
        match tokens.get(end) {
            Some(TokenTree::Group(group)) => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                for part in inner.split(|token| is_mark(Some(token), ',')) {
                    if !part.is_empty() {
                        self.tree(part, &names);
                    }
                }
                return;
            }
            Some(TokenTree::Punct(mark)) if mark.as_char() == '*' => names.push("*".to_owned()),
            _ => {}
        }
        if names.len() > 1 && names.last().is_some_and(|last| last == "self") {
            names.pop();
        }
        let mut alias = names.last().cloned().unwrap_or_default();
        if let (Some(TokenTree::Ident(word)), Some(TokenTree::Ident(name))) =
            (tokens.get(end), tokens.get(end + 1))
            && word == "as"
        {
            alias = name.to_string();
            end += 2;
        }
        debug_assert!(end <= tokens.len());
        self.uses.push((names, alias));
    }
}

/// The names of a path that begins at a token, and where it ends.
fn path(tokens: &[TokenTree], mut at: usize) -> (Vec<String>, usize) {
    let mut names = Vec::new();
    while let Some(TokenTree::Ident(name)) = tokens.get(at) {
        names.push(name.to_string());
        at += 1;
        if !(is_mark(tokens.get(at), ':') && is_mark(tokens.get(at + 1), ':')) {
            break;
        }
        at += 2;
    }
    (names, at)
}

/// Whether an attribute is `cfg(test)`.
fn is_for_tests(attribute: Option<&TokenTree>) -> bool {
    attribute.is_some_and(|it| it.to_string().replace(' ', "") == "[cfg(test)]")
}

/// Where the item ends that begins at a token: after its braces or its semicolon.
fn end_of_item(tokens: &[TokenTree], at: usize) -> usize {
    let ends =
        |n: &usize| is_mark(tokens.get(*n), ';') || is_group(tokens.get(*n), Delimiter::Brace);
    (at..tokens.len()).find(ends).map_or(tokens.len(), |end| end + 1)
}

fn is_mark(token: Option<&TokenTree>, mark: char) -> bool {
    matches!(token, Some(TokenTree::Punct(it)) if it.as_char() == mark)
}

fn is_group(token: Option<&TokenTree>, delimiter: Delimiter) -> bool {
    matches!(token, Some(TokenTree::Group(it)) if it.delimiter() == delimiter)
}
