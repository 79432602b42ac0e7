//! What any store can answer instead of a result, whatever it is made of.

use std::{error::Error, fmt};

/// What a failure means for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The store cannot do it now; the outcome is unknown, and the same call may succeed later.
    Unavailable,
    /// The store has too much work; nothing was done, and the same call may succeed later.
    Overloaded,
    /// The store will never take it, because it is too large.
    TooLarge,
}

/// A call of a store failed. Displays its cause, and the causes of that.
#[derive(Debug)]
pub struct Failure {
    /// What the failure means for the caller.
    pub kind: FailureKind,
    source: Box<dyn Error + Send + Sync>,
}

impl Failure {
    /// A failure of a kind, with the store's own error or a message.
    pub fn new(kind: FailureKind, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind, source: source.into() }
    }

    /// The store's own error.
    #[must_use]
    pub fn cause(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.source
    }

    /// The store is unavailable.
    pub fn unavailable(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(FailureKind::Unavailable, source)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(&*self.source))
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}

/// An error and its causes in one line; a cause whose text is part of the line already is left out.
#[must_use]
pub fn chain(error: &(dyn Error + '_)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("inner")]
    struct Inner;

    #[test]
    fn a_failure_shows_all_causes_once() {
        assert_eq!(Failure::unavailable(Outer(Inner)).to_string(), "outer: inner");
        assert_eq!(Failure::unavailable("plain").to_string(), "plain");
    }
}
