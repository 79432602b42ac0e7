//! The events that sources send; see the crate `event`.

use event::{Answer, Undelivered};
pub use event::{Event, Origin, RawRecord, Undecodable};

use crate::delivery::Failure;

impl Undelivered for Failure {
    fn answer(&self) -> Option<Answer<'_>> {
        let answer = self.answer.as_ref()?;
        Some(Answer { status: answer.status, headers: &answer.headers, body: &answer.body })
    }
}
