//! Askers that want the same of the database, served together: whoever comes while one exchange runs shares the next one.

use crate::{Result, StoreError};
use tokio::sync::{mpsc, oneshot};

/// Answers questions `Q` in groups.
pub(crate) struct Gatherer<Q, A> {
    questions: mpsc::UnboundedSender<(Q, oneshot::Sender<Result<A>>)>,
}

impl<Q: Send + 'static, A: Send + 'static> Gatherer<Q, A> {
    /// `serve` returns as many answers as it is given questions. Ends when the gatherer is dropped.
    pub fn start<F>(serve: impl Fn(Vec<Q>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Vec<Result<A>>> + Send,
    {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut waiting: Vec<(Q, oneshot::Sender<Result<A>>)> = Vec::new();
            while receiver.recv_many(&mut waiting, usize::MAX).await > 0 {
                let (asked, replies): (Vec<Q>, Vec<_>) = waiting.drain(..).unzip();
                for (answer, reply) in serve(asked).await.into_iter().zip(replies) {
                    let _ = reply.send(answer);
                }
            }
        });
        Gatherer { questions: sender }
    }

    pub async fn ask(&self, question: Q) -> Result<A> {
        let (reply, answer) = oneshot::channel();
        self.questions.send((question, reply)).map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::sync::Notify;

    #[tokio::test]
    async fn who_waits_is_served_together() {
        let go = Arc::new(Notify::new());
        let gate = Arc::clone(&go);
        let gatherer = Gatherer::start(move |asked: Vec<u32>| {
            let gate = Arc::clone(&gate);
            async move {
                gate.notified().await;
                let n = asked.len();
                asked.into_iter().map(|q| Ok((q, n))).collect()
            }
        });
        let answers = async {
            let first = gatherer.ask(0);
            let rest = futures::future::join_all((1..5).map(|q| gatherer.ask(q)));
            let open = async {
                for _ in 0..50 {
                    tokio::task::yield_now().await;
                }
                go.notify_one();
                tokio::task::yield_now().await;
                go.notify_one();
            };
            tokio::join!(
                first,
                async {
                    tokio::task::yield_now().await;
                    rest.await
                },
                open
            )
        };
        let (first, rest, ()) = answers.await;
        assert_eq!(first.unwrap(), (0, 1));
        let rest: Vec<_> = rest.into_iter().map(|r| r.unwrap()).collect();
        assert_eq!(rest, [(1, 4), (2, 4), (3, 4), (4, 4)]);
    }
}
