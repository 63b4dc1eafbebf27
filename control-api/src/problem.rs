//! What is wrong with a configuration, and where.

use std::fmt::{self, Write as _};

/// One fault in a configuration. Checks report all of them at once, never only the first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The field at fault, such as `static_resources.listeners[0].address` or
    /// `typed_extension_protocol_options["x"].foo`; empty when the document as a whole is at fault.
    pub path: String,
    /// What is wrong with it, without the path.
    pub message: String,
}

impl Problem {
    /// A problem at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

impl std::error::Error for Problem {}

/// The path of the field being looked at. Each step returns the length to go back to.
#[derive(Debug, Default)]
pub(crate) struct Path(String);

impl Path {
    pub(crate) fn new(root: &str) -> Self {
        Self(root.to_owned())
    }

    pub(crate) fn field(&mut self, name: &str) -> usize {
        let back = self.0.len();
        if back > 0 {
            self.0.push('.');
        }
        self.0.push_str(name);
        back
    }

    pub(crate) fn index(&mut self, index: usize) -> usize {
        let back = self.0.len();
        // Writing to a String cannot fail.
        let _ = write!(self.0, "[{index}]");
        back
    }

    pub(crate) fn key(&mut self, key: &str) -> usize {
        let back = self.0.len();
        let _ = write!(self.0, "[{key:?}]");
        back
    }

    pub(crate) fn back(&mut self, length: usize) {
        self.0.truncate(length);
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}
