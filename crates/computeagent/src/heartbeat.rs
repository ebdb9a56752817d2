//! What the relay hears of the host: one line at once, one at each change, and one every so often.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use rpc::inference::{MAX_MODELS, ModelOffer};
use rpc::link::Heartbeat;
use rpc::node::NodeReport;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::agent::{Shared, now};
use crate::host::Host;
use crate::policy::pause;

/// An endless body of newline-delimited [`Heartbeat`]s, which ends with `ending`.
pub(crate) fn body(shared: Arc<Shared>, every: Duration, ending: CancellationToken) -> Body {
    let stream = Stream {
        attempts: shared.attempts.subscribe(),
        host: shared.host.clone(),
        told_draining: false,
        last: None,
        shared,
        every,
        ending,
    };
    Body::from_stream(stream::unfold(stream, async |mut stream| {
        let line = stream.next().await?;
        Some((Ok::<_, std::convert::Infallible>(line), stream))
    }))
}

struct Stream {
    shared: Arc<Shared>,
    attempts: watch::Receiver<()>,
    host: watch::Receiver<Host>,
    /// Whether the last line said that the agent drains.
    told_draining: bool,
    /// When the last line was made.
    last: Option<Instant>,
    every: Duration,
    ending: CancellationToken,
}

impl Stream {
    async fn next(&mut self) -> Option<Bytes> {
        let ending = self.ending.clone();
        ending.run_until_cancelled(self.due()).await?;
        self.attempts.mark_unchanged();
        self.host.mark_unchanged();
        self.told_draining = self.shared.draining.is_cancelled();
        self.last = Some(Instant::now());
        let mut line = serde_json::to_vec(&self.heartbeat()).ok()?;
        line.push(b'\n');
        Some(line.into())
    }

    /// Waits until there is something to tell, and no less than the gap since the last line.
    async fn due(&mut self) {
        let Some(last) = self.last else { return };
        // The senders live as long as the agent; should they end, the interval still holds.
        tokio::select! {
            Ok(()) = self.attempts.changed() => {}
            Ok(()) = self.host.changed() => {}
            () = self.shared.draining.cancelled(), if !self.told_draining => {}
            () = tokio::time::sleep_until(last + self.every) => {}
        }
        tokio::time::sleep_until(last + self.shared.config.timing.heartbeat_gap).await;
    }

    /// What the node's engines serve, with the operator's prices; nothing while the agent stops.
    fn models(&self, report: Option<&NodeReport>) -> Vec<ModelOffer> {
        let models = report.filter(|_| !self.told_draining).map(|report| report.models.iter());
        let prices = &self.shared.config.prices;
        models.into_iter().flatten().take(MAX_MODELS).map(|offer| prices.put_on(offer.clone())).collect()
    }

    fn heartbeat(&self) -> Heartbeat {
        let host = self.host.borrow();
        let draining = self.told_draining;
        let report = host.report.as_ref();
        let policy = &self.shared.config.policy;
        let pause = pause(policy, &host, jiff::Timestamp::now());
        let closed = draining || pause.is_some();
        let unhealthy = match report {
            _ if draining => Some("the agent is stopping".to_owned()),
            _ if let Some(pause) = pause => Some(pause.reason),
            Some(report) => report.unhealthy.clone(),
            None => host.problem.clone(),
        };
        Heartbeat {
            at: now(),
            busy: self.shared.attempts.computing().max(report.map_or(0, |report| report.busy)),
            slots: if closed { 0 } else { host.slots(policy) },
            free_vram_mb: report.map(|report| report.free_vram_mb.clone()).unwrap_or_default(),
            warm_models: report.map(|report| report.warm_models.clone()).unwrap_or_default(),
            models: self.models(report),
            unhealthy,
            attempts: self.shared.attempts.held(),
        }
    }
}
