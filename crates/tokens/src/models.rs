//! Which encoding counts for which model.
//!
//! One table; the first match is used. Only the models that OpenAI has published are exact
//! (tiktoken's `model.py`). For the others the table fixes an encoding, so that every replica
//! estimates with the same one, and a receipt says that the count is an estimate.

use crate::encoding::Encoding::{self, Cl100k, O200k};
use crate::encoding::Exactness::{self, Estimate, Exact};

/// A name, or with `*` a prefix; its encoding; and whether the model uses it. Versions that are not
/// published yet are unknown, except within a family that has always used one encoding.
const MODELS: &[(&str, Encoding, Exactness)] = &[
    ("gpt-4o*", O200k, Exact),
    ("gpt-4.1*", O200k, Exact),
    ("gpt-4.5*", O200k, Exact),
    ("gpt-5*", O200k, Exact),
    ("chatgpt-4o*", O200k, Exact),
    ("o1", O200k, Exact),
    ("o1-*", O200k, Exact),
    ("o3", O200k, Exact),
    ("o3-*", O200k, Exact),
    ("o4-*", O200k, Exact),
    ("gpt-4", Cl100k, Exact),
    ("gpt-4-*", Cl100k, Exact),
    ("gpt-3.5*", Cl100k, Exact),
    ("gpt-35-*", Cl100k, Exact), // the name in Azure
    ("text-embedding-3*", Cl100k, Exact),
    ("text-embedding-ada-002", Cl100k, Exact),
    // The encodings of Llama 3 and Qwen extend cl100k and contain nearly all of it.
    ("llama3*", Cl100k, Estimate),
    ("llama-3*", Cl100k, Estimate),
    ("meta-llama-3*", Cl100k, Estimate),
    ("qwen*", Cl100k, Estimate),
];

/// The encoding for a model that is not listed: the one with the larger and more multilingual
/// vocabulary, as in recent models.
const UNKNOWN: (Encoding, Exactness) = (O200k, Estimate);

impl Encoding {
    /// The encoding to count with for a model, and whether it is the model's own. Names are
    /// compared without regard to case; a provider's prefix (`openai/gpt-4o`) and the prefix of a
    /// fine-tuned model (`ft:gpt-4o:…`) are skipped. An unknown model is an estimate by
    /// [`Encoding::O200k`].
    #[must_use]
    pub fn for_model(model: &str) -> (Self, Exactness) {
        // `openai/gpt-4o`, `ft:gpt-4o:team::id`.
        let model = model.rsplit('/').next().unwrap_or(model).to_ascii_lowercase();
        let model = model.strip_prefix("ft:").unwrap_or(&model);
        MODELS
            .iter()
            .find(|(pattern, ..)| matches(pattern, model))
            .map_or(UNKNOWN, |&(_, encoding, exactness)| (encoding, exactness))
    }
}

fn matches(pattern: &str, model: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => model.starts_with(beginning),
        None => model == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_models_are_exact() {
        for (models, encoding) in [
            (
                &[
                    "gpt-4o",
                    "gpt-4o-mini-2024-07-18",
                    "gpt-4.1-nano",
                    "gpt-5",
                    "gpt-5-mini",
                    "gpt-5.1",
                    "o1",
                    "o3-mini",
                    "o4-mini",
                    "chatgpt-4o-latest",
                    "GPT-4o",
                    "openai/gpt-4o",
                    "ft:gpt-4o:team::id",
                ][..],
                O200k,
            ),
            (&["gpt-4", "gpt-4-turbo", "gpt-4-32k", "gpt-3.5-turbo", "gpt-35-turbo"][..], Cl100k),
        ] {
            for model in models {
                assert_eq!(Encoding::for_model(model), (encoding, Exact), "{model}");
            }
        }
    }

    #[test]
    fn other_models_are_estimates() {
        for (model, encoding) in [
            ("llama3-70b-8192", Cl100k),
            ("llama3.1-8b", Cl100k),
            ("meta-llama/Llama-3.3-70B", Cl100k),
            ("mixtral-8x7b-32768", O200k),
            ("claude-sonnet-4", O200k),
            ("o1x", O200k),
            ("gpt-4.7", O200k),
            ("", O200k),
            ("größe", O200k),
        ] {
            assert_eq!(Encoding::for_model(model), (encoding, Estimate), "{model}");
        }
    }

    #[test]
    fn no_entry_hides_a_later_one() {
        for (i, (later, ..)) in MODELS.iter().enumerate() {
            let name = later.trim_end_matches('*');
            let earlier = MODELS[..i].iter().find(|(pattern, ..)| matches(pattern, name));
            assert_eq!(earlier, None, "{later} is never reached");
        }
    }
}
