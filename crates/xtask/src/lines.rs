//! `cargo xtask lines`: counts the product's lines of Rust.
//!
//! The product is what `crates/` builds, without `testkit`, `fixtures`, `xtask`, the folders `tests` and `examples`,
//! and the modules under `#[cfg(test)]`. Comments and blank lines count: they are read too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use testkit::place::workspace;

use crate::say;

/// Options of `cargo xtask lines`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Print one JSON document instead of text
    #[arg(long)]
    json: bool,
}

/// Folders that are not part of the product.
const OTHER: [&str; 5] = ["testkit", "fixtures", "xtask", "tests", "examples"];

/// Prints the lines of each crate and their sum.
pub(crate) fn run(options: &Options) -> Result<()> {
    let root = workspace().join("crates");
    let mut files = Vec::new();
    rust_files(&root, &mut files)?;
    let mut crates: BTreeMap<String, usize> = BTreeMap::new();
    for file in files {
        let of = file.strip_prefix(&root)?.to_string_lossy().into_owned();
        let Some((of, _)) = of.split_once("/src/") else { continue };
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let is_for_tests = is_for_tests(&file)?;
        let lines = if is_for_tests { 0 } else { product_lines(&text) };
        *crates.entry(of.to_owned()).or_default() += lines;
    }
    let total: usize = crates.values().sum();
    if options.json {
        say::line(&serde_json::to_string_pretty(
            &serde_json::json!({"crates": crates, "total": total}),
        )?);
        return Ok(());
    }
    for (name, lines) in &crates {
        say::line(&format!("{lines:>7}  {name}"));
    }
    say::heading(&format!("{total:>7}  lines of Rust in the product"));
    Ok(())
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !OTHER.contains(&name.as_str()) {
            rust_files(&path, found)?;
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// Whether a file is a module under `#[cfg(test)]`: its parent declares it so.
fn is_for_tests(file: &Path) -> Result<bool> {
    let (Some(dir), Some(name)) = (file.parent(), file.file_stem()) else { return Ok(false) };
    let declaration = format!("mod {};", name.to_string_lossy());
    let parents =
        [dir.join("lib.rs"), dir.join("main.rs"), dir.with_extension("rs"), dir.join("mod.rs")];
    for parent in parents.iter().filter(|it| it.is_file()) {
        let text = std::fs::read_to_string(parent)?;
        let mut pairs = text.lines().zip(text.lines().skip(1));
        if pairs.any(|(attribute, next)| {
            attribute == "#[cfg(test)]" && module(next) == Some(&declaration)
        }) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The declaration of a module without its visibility.
fn module(line: &str) -> Option<&str> {
    let declaration = line.strip_prefix("pub(crate) ").unwrap_or(line);
    declaration.starts_with("mod ").then_some(declaration)
}

/// The lines of a file without those of test modules. The code is formatted: such a module ends with the next
/// brace in the first column.
fn product_lines(text: &str) -> usize {
    let (mut lines, mut in_tests) = (0, false);
    let mut rest = text.lines().peekable();
    while let Some(line) = rest.next() {
        let begins =
            line == "#[cfg(test)]" && rest.peek().is_some_and(|next| module(next).is_some());
        if begins {
            in_tests = rest.peek().is_some_and(|next| next.ends_with('{'));
            if !in_tests {
                rest.next();
            }
        } else if !in_tests {
            lines += 1;
        } else if line == "}" {
            in_tests = false;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_modules_do_not_count() {
        let text = "fn a() {\n}\n\n#[cfg(test)]\nmod fixtures;\n\n#[cfg(test)]\nmod tests {\n    fn b() {\n    }\n}\nfn c() {}\n";
        assert_eq!(product_lines(text), 5);
        let shared = text.replace("mod tests", "pub(crate) mod tests");
        assert_eq!(product_lines(&shared), 5, "fixtures for the tests of other modules");
    }
}
