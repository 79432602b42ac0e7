//! The events that sources send (crate `event`), and what a failed delivery adds to a dead letter.

use event::{Answer, Undelivered};
pub use event::{Event, Origin, RawRecord, Undecodable};

use crate::delivery::Failure;

impl Undelivered for Failure {
    fn answer(&self) -> Option<Answer<'_>> {
        let answer = self.answer.as_ref()?;
        Some(Answer { status: answer.status, headers: &answer.headers, body: &answer.body })
    }
}
