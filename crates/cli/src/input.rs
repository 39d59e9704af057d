//! JSON lines from a file or from standard input. A command that checks all lines before it acts reads
//! them twice.
//!
//! A file is read line by line each time. Standard input cannot be read twice, so it is buffered in
//! memory.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::sync::Arc;

use crate::exit::Failure;

/// What the user named: a file or standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// `-`
    Standard,
    File(PathBuf),
}

/// Lines that can be read from the beginning again.
#[derive(Debug)]
pub(crate) struct Lines {
    input: Input,
    buffer: Option<Arc<[u8]>>,
}

/// A line that is not blank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// Its number, from 1; blank lines count.
    pub(crate) number: u64,
    /// Its bytes, without the line break.
    pub(crate) body: Vec<u8>,
}

impl Input {
    /// Value parser for clap: `-` is standard input, anything else a path.
    pub(crate) fn parse(text: &str) -> Result<Self, std::convert::Infallible> {
        Ok(if text == "-" { Self::Standard } else { Self::File(text.into()) })
    }

    /// Prepares it for being read more than once: buffers standard input.
    pub(crate) fn buffered(self) -> Result<Lines, Failure> {
        let buffer = match &self {
            Self::File(_) => None,
            Self::Standard => {
                announce_standard_input();
                Some(self.bytes()?.into())
            }
        };
        Ok(Lines { input: self, buffer })
    }

    /// Prepares it for being read once, line by line as they arrive.
    pub(crate) fn streamed(self) -> Lines {
        if self == Self::Standard {
            announce_standard_input();
        }
        Lines { input: self, buffer: None }
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        let read = match self {
            Self::Standard => io::stdin().lock().read_to_end(&mut bytes),
            Self::File(path) => File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)),
        };
        read.map_err(|error| self.unreadable(&error))?;
        Ok(bytes)
    }

    fn unreadable(&self, error: &io::Error) -> Failure {
        Failure::usage(format!("cannot read {self}: {error}"))
    }
}

/// Says on a terminal what the program waits for; `-` may have been typed by mistake.
fn announce_standard_input() {
    if io::stdin().is_terminal() {
        eprintln!("reading actions from standard input, one JSON object per line; end with Ctrl-D");
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard => f.write_str("standard input"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl Lines {
    /// The lines, from the beginning.
    pub(crate) fn read(&self) -> Result<impl Iterator<Item = Result<Line, Failure>>, Failure> {
        let reader: Box<dyn BufRead> = match (&self.input, &self.buffer) {
            (_, Some(bytes)) => Box::new(Cursor::new(Arc::clone(bytes))),
            (Input::Standard, None) => Box::new(BufReader::new(io::stdin())),
            (Input::File(path), None) => {
                let file = File::open(path).map_err(|error| self.input.unreadable(&error))?;
                Box::new(BufReader::new(file))
            }
        };
        let input = self.input.clone();
        Ok(lines(reader).map(move |line| line.map_err(|error| input.unreadable(&error))))
    }
}

fn lines(reader: impl BufRead) -> impl Iterator<Item = io::Result<Line>> {
    let line = |(number, body): (u64, io::Result<Vec<u8>>)| match body {
        Ok(mut body) => {
            body.truncate(body.trim_ascii_end().len());
            (!body.is_empty()).then_some(Ok(Line { number, body }))
        }
        Err(error) => Some(Err(error)),
    };
    (1..).zip(reader.split(b'\n')).filter_map(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_are_counted_and_skipped() {
        let found: Vec<_> = lines(&b"\n{\"a\":1}\r\n  \n b"[..]).map(Result::unwrap).collect();
        assert_eq!(
            found,
            [
                Line { number: 2, body: b"{\"a\":1}".to_vec() },
                Line { number: 4, body: b" b".to_vec() },
            ]
        );
    }

    #[test]
    fn a_dash_is_standard_input_and_anything_else_a_file() {
        assert_eq!(Input::parse("-"), Ok(Input::Standard));
        assert_eq!(Input::parse("-x"), Ok(Input::File("-x".into())));
        let missing = Input::File("/nowhere/at/all".into()).buffered().unwrap();
        let failure = missing.read().err().unwrap().text;
        assert!(failure.starts_with("cannot read /nowhere/at/all: "), "{failure}");
    }
}
