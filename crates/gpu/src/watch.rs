//! Listening for Xid errors.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use crate::nvml::{Nvml, XidError};
use crate::{Verdicts, xid_verdict};

/// How long one question to the driver lasts, which bounds how long stopping takes.
const POLL: Duration = Duration::from_millis(250);
/// The pause after the driver answered with an error.
const PAUSE: Duration = Duration::from_secs(5);
/// How long stopping waits for the thread. A driver that hangs holds it, and then it is left behind.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// The thread that listens for Xid errors. It ends when this is dropped.
#[derive(Debug)]
#[must_use = "listening ends when the watcher is dropped"]
pub struct Watcher {
    stop: Option<Sender<()>>,
    ended: Receiver<()>,
}

impl Watcher {
    /// Listens for errors of the GPUs with these UUIDs and writes what they say to `verdicts`.
    pub(crate) fn start(nvml: Arc<Nvml>, uuids: Vec<String>, verdicts: Verdicts) -> Option<Self> {
        if uuids.is_empty() {
            return None;
        }
        let (stop, stopped) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let listen = move || {
            if let Some(events) = nvml.xid_events(&uuids) {
                let _ = ready.send(());
                run(&stopped, || events.next(POLL), &verdicts);
            }
            drop(end);
        };
        if let Err(error) = thread::Builder::new().name("gpu-xid".to_owned()).spawn(listen) {
            tracing::warn!(%error, "cannot listen for the GPUs' Xid errors");
            return None;
        }
        // The sender is dropped unused where no GPU reports such errors.
        is_ready.recv_timeout(STOP_WAIT).ok()?;
        Some(Self { stop: Some(stop), ended })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop = None;
        if self.ended.recv_timeout(STOP_WAIT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("NVIDIA's driver hangs; the thread that listens to it is left behind");
        }
    }
}

/// Takes errors from `next` until `stopped` says so by being disconnected.
fn run(
    stopped: &Receiver<()>,
    mut next: impl FnMut() -> Result<Option<XidError>, String>,
    verdicts: &Verdicts,
) {
    while stopped.try_recv() == Err(TryRecvError::Empty) {
        match next() {
            Ok(Some(error)) => note(&error, verdicts),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(error, "NVIDIA's driver does not report Xid errors");
                if stopped.recv_timeout(PAUSE) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        }
    }
}

fn note(XidError { uuid, xid }: &XidError, verdicts: &Verdicts) {
    let Some(verdict) = xid_verdict(*xid) else {
        tracing::info!(uuid, xid, "an application's error on the GPU");
        return;
    };
    tracing::error!(uuid, xid, reason = verdict.reason(), "the GPU is taken out of offer");
    let mut verdicts = verdicts.lock().unwrap_or_else(PoisonError::into_inner);
    let known = verdicts.remove(uuid);
    let worst = known.map_or(verdict.clone(), |known| known.worse(verdict));
    verdicts.insert(uuid.clone(), worst);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Health;

    fn error(uuid: &str, xid: u64) -> Result<Option<XidError>, String> {
        Ok(Some(XidError { uuid: uuid.into(), xid }))
    }

    #[test]
    fn errors_are_judged_until_the_watcher_stops() {
        let (stop, stopped) = mpsc::channel();
        let mut stop = Some(stop);
        let mut events =
            vec![error("GPU-1", 31), Ok(None), error("GPU-2", 63), error("GPU-2", 79), error("GPU-2", 94)];
        events.reverse();
        let verdicts = Verdicts::default();
        run(
            &stopped,
            || {
                events.pop().unwrap_or_else(|| {
                    stop = None;
                    Ok(None)
                })
            },
            &verdicts,
        );
        let verdicts = verdicts.lock().unwrap();
        assert_eq!(verdicts.get("GPU-1"), None);
        assert!(matches!(&verdicts["GPU-2"], Health::Failed { reason } if reason.starts_with("Xid 79")));
    }

    #[test]
    fn a_driver_that_fails_ends_when_told_to() {
        let (stop, stopped) = mpsc::channel::<()>();
        let mut stop = Some(stop);
        let mut asked = 0;
        run(
            &stopped,
            || {
                asked += 1;
                stop = None;
                Err("lost".into())
            },
            &Verdicts::default(),
        );
        assert_eq!(asked, 1);
    }
}
