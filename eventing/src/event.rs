//! The events that sources send; see the crate `event`.

pub use event::{Event, Origin, Undecodable};
use event::{Answer, Undelivered};

use crate::delivery::Failure;

impl Undelivered for Failure {
    fn answer(&self) -> Option<Answer<'_>> {
        let answer = self.answer.as_ref()?;
        Some(Answer { status: answer.status, headers: &answer.headers, body: &answer.body })
    }
}
