//! Finds dependencies that a crate declares but does not use.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cargo;

/// Fails with the list of unused dependencies.
pub(super) async fn check() -> Result<()> {
    let mut command = cargo::command(&["metadata", "--format-version=1", "--no-deps"]);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let mut unused = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let manifest = Path::new(package["manifest_path"].as_str().context("manifest_path")?);
        let mut sources = String::new();
        read_sources(
            manifest.parent().context("the manifest has no parent directory")?,
            &mut sources,
        )?;
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let name =
                dependency["rename"].as_str().or(dependency["name"].as_str()).unwrap_or_default();
            if !names(&sources, &name.replace('-', "_")) {
                unused.push(format!(
                    "{} declares {name}",
                    package["name"].as_str().unwrap_or_default()
                ));
            }
        }
    }
    if unused.is_empty() {
        return Ok(());
    }
    bail!("unused dependencies; remove them from Cargo.toml:\n{}", unused.join("\n"))
}

/// Appends the Rust sources in a directory, except those of other packages inside it.
fn read_sources(dir: &Path, sources: &mut String) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() && !path.join("Cargo.toml").exists() && !path.ends_with("target") {
            read_sources(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

/// Whether the sources contain the name of the crate as a whole word.
fn names(sources: &str, name: &str) -> bool {
    sources.match_indices(name).any(|(at, _)| {
        let before = sources[..at].chars().next_back();
        let after = sources[at + name.len()..].chars().next();
        let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !is_word(before) && !is_word(after)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_is_named_by_whole_words_only() {
        assert!(names("use serde_json::Value;", "serde_json"));
        assert!(!names("use serde_json::Value;", "serde"));
        assert!(names("#[derive(serde::Serialize)]", "serde"));
    }
}
