//! A process that may die between any two calls. A dead one makes no call any more and gets no answer: its tasks wait
//! for ever at their next call, which nobody can tell from their end.

use std::{
    future::{Future, pending},
    sync::Arc,
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::world::{Fault, Seam, World};

/// Milliseconds that a delayed call takes at most; also how late an effect comes.
const DELAY_MS: u64 = 3_000;
/// Milliseconds that any call takes at most.
const LATENCY_MS: u64 = 4;

/// A process of a function or of the event sources.
pub struct Process {
    pub name: String,
    pub number: u64,
    pub world: Arc<World>,
    pub dead: CancellationToken,
}

impl Process {
    pub fn new(world: &Arc<World>, name: &str) -> Arc<Self> {
        let number = world.next_process();
        let process = Self {
            name: format!("{name}-{number}"),
            number,
            world: world.clone(),
            dead: CancellationToken::new(),
        };
        process.world.log(&process.name, format_args!("starts"));
        Arc::new(process)
    }

    pub fn die(&self) {
        if !self.dead.is_cancelled() {
            self.world.log(&self.name, format_args!("dies"));
            self.dead.cancel();
        }
    }

    /// What a process does until it is dead; then it waits for ever.
    pub async fn alive<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            () = self.dead.cancelled() => pending().await,
            output = work => output,
        }
    }

    /// Calls a component across a seam, where one of the faults may occur.
    pub async fn call<T, E, F>(
        &self,
        seam: Seam,
        faults: &[Fault],
        call: F,
        error: impl Fn(&'static str) -> E,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let latency = self.world.within_ms(LATENCY_MS);
        self.alive(sleep(latency)).await;
        let fault = self.world.draw(seam, faults);
        if let Some(fault) = fault {
            self.world.log(&self.name, format_args!("{seam:?}: {fault:?}"));
        }
        match fault {
            None => self.alive(call).await,
            Some(Fault::Refused) => Err(error("refused")),
            Some(Fault::AnswerLost) => {
                let _ = self.alive(call).await;
                Err(error("the answer was lost"))
            }
            Some(Fault::LateEffect) => {
                let delay = self.world.within_ms(DELAY_MS);
                tokio::spawn(async move {
                    sleep(delay).await;
                    let _ = call.await;
                });
                Err(error("no answer in time"))
            }
            Some(Fault::DiesBefore) => {
                self.die();
                pending().await
            }
            Some(Fault::DiesAfter) => {
                let _ = self.alive(call).await;
                self.die();
                pending().await
            }
            Some(_) => {
                self.alive(sleep(self.world.within_ms(DELAY_MS))).await;
                self.alive(call).await
            }
        }
    }
}
