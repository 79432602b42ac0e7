//! Moves long work for one request off the thread that serves all of them.

use std::sync::LazyLock;

use tokio::sync::Semaphore;

use crate::error::Error;

/// Bodies larger than this many bytes are decoded on a blocking thread; smaller ones take well under a millisecond.
pub const INLINE_LIMIT: usize = 64 * 1024;

/// No more threads than processors: more would only use memory.
static PERMITS: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(2, |n| n.get().max(2))));

/// Runs work on a body of `length` bytes, on a blocking thread if the body is large.
pub async fn run<T, E>(bytes: usize, work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, Error>
where
    T: Send + 'static,
    E: Into<Error> + Send + 'static,
{
    if bytes <= INLINE_LIMIT {
        return work().map_err(Into::into);
    }
    let _permit = PERMITS.acquire().await.map_err(|e| Error::unavailable(&e))?;
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        // Resume the panic in the request's task, as without the other thread.
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(Error::unavailable(&error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[tokio::test]
    async fn large_work_leaves_the_serving_thread_and_small_work_stays() {
        let serving = thread::current().id();
        let whose = |bytes| run(bytes, || Ok::<_, Error>(thread::current().id()));
        assert_eq!(whose(INLINE_LIMIT).await.unwrap(), serving);
        assert_ne!(whose(INLINE_LIMIT + 1).await.unwrap(), serving);
    }
}
