//! The dispatcher: follows the market's changes, brings open tasks to hosts that fit, and releases attempts whose host stayed away.
//!
//! One loop, woken by what happens: a change of a task, a host that joined or has room again, an offer that ended, a time that was
//! waited for. Whatever waits on others (offers, releases, calls) runs beside it in tasks that it owns.

use std::collections::HashSet;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use store::{Cursor, Page, StoreError};
use taskmarket::TaskId;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep, sleep_until};

use super::{Hub, alive, offer};
use crate::market::Change;

/// Tasks that are read from the store at once.
const PAGE: usize = 512;
/// Changes that are taken up before hosts are chosen again.
const BATCH: usize = 512;
/// Releases of one batch worked on at the same time.
const CONCURRENT: usize = 32;
/// How long to wait after the store failed.
const RETRY: Duration = Duration::from_secs(1);
/// The store is searched for tasks that had no room in memory no more often than this.
const SEARCH_GAP: Duration = Duration::from_secs(1);

/// Runs until the hub stops.
pub(super) async fn run(hub: &Arc<Hub>) {
    let mut changes = hub.market.subscribe();
    if hub.stop.run_until_cancelled(alive::start(hub)).await.is_none() {
        return;
    }
    let mut dispatcher = Dispatcher {
        hub,
        offers: JoinSet::new(),
        chores: JoinSet::new(),
        overflow: Overflow::default(),
        wake_at: None,
    };
    // What had no room at the start is searched for like what has none later.
    dispatcher.resync().await;
    hub.floor().be_patient();
    hub.open.store(true, Ordering::Release);
    let mut tick = interval(hub.config.safety_tick);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut life = interval_at(Instant::now() + alive::EVERY, alive::EVERY);
    life.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        dispatcher.advance().await;
        let wake_at = dispatcher.wake_at;
        tokio::select! {
            () = hub.stop.cancelled() => break,
            change = changes.recv() => match change {
                Ok(change) => {
                    if dispatcher.follow(change, &mut changes).is_err() {
                        dispatcher.resync().await;
                    }
                }
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "changes missed; reading the store again");
                    dispatcher.resync().await;
                }
                Err(RecvError::Closed) => break,
            },
            () = hub.wake.notified() => dispatcher.overflow.wanted = true,
            Some(_) = dispatcher.offers.join_next() => {}
            Some(_) = dispatcher.chores.join_next() => {}
            () = wait_until(wake_at) => {}
            _ = tick.tick() => {
                // What became durable without a word of it, here or at another relay of the same store, is found as well.
                dispatcher.overflow.any = true;
                dispatcher.overflow.wanted = true;
            }
            _ = life.tick() => {
                let hub = Arc::clone(hub);
                dispatcher.chores.spawn(async move { alive::say(&hub).await });
            }
        }
    }
    // Offers under way end with their sessions; whoever accepted in time keeps the task.
    dispatcher.offers.shutdown().await;
    dispatcher.chores.shutdown().await;
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

struct Dispatcher<'a> {
    hub: &'a Arc<Hub>,
    offers: JoinSet<()>,
    chores: JoinSet<()>,
    overflow: Overflow,
    /// When there is something to do without an occasion.
    wake_at: Option<Instant>,
}

/// Open tasks that had no room in memory, or of which nobody told.
#[derive(Debug, Default)]
struct Overflow {
    /// Whether there are any.
    any: bool,
    /// Whether hosts may have room for them.
    wanted: bool,
    /// A search of the store that is under way.
    search: Option<Search>,
    /// When the next search may begin.
    not_before: Option<Instant>,
}

/// A search of the store for open tasks, oldest first.
#[derive(Debug, Clone, Copy)]
struct Search {
    /// Where it is.
    cursor: Option<Cursor>,
    /// Tasks found that could be offered.
    found: usize,
    /// Whether all of them had room.
    whole: bool,
}

impl Dispatcher<'_> {
    /// Does all that can be done now.
    async fn advance(&mut self) {
        let mut trimmed = self.assign();
        if self.hub.stop.is_cancelled() {
            return;
        }
        if let Some(page) = self.search().await {
            for stored in &page.tasks {
                self.hub.absorb(&stored.record, stored.node, None);
            }
            trimmed |= self.assign();
            self.went_through(&page, trimmed);
        }
        self.overflow.any |= trimmed;
        self.release_forsaken();
    }

    /// Goes on with a search after a page, or ends it.
    fn went_through(&mut self, page: &Page, trimmed: bool) {
        let Some(mut search) = self.overflow.search.take() else { return };
        search.found += page.tasks.iter().filter(|stored| stored.record.is_on_offer()).count();
        search.whole &= !trimmed;
        // All further ones are newer than those for which there is room.
        let is_full = search.found >= self.hub.config.max_waiting;
        match page.next {
            Some(next) if !is_full => {
                self.overflow.search = Some(Search { cursor: Some(next), ..search });
                self.wake_at = Some(Instant::now());
            }
            next => self.overflow.any = next.is_some() || !search.whole,
        }
    }

    /// Offers what can be offered. Says whether tasks had to leave for want of room.
    fn assign(&mut self) -> bool {
        if self.hub.closing.is_cancelled() {
            self.wake_at = None;
            return false;
        }
        let now = Instant::now();
        let room = self.hub.config.max_offers.saturating_sub(self.offers.len());
        let chain_is_well = self.hub.market.chain().is_some_and(|chain| chain.trouble().is_none());
        let mut floor = self.hub.floor();
        floor.chain_is_well = chain_is_well;
        let (vain, look_at) = floor.in_vain(now);
        let (plans, again) = floor.assign(room, now);
        let trimmed = floor.trim(self.hub.config.max_waiting);
        drop(floor);
        self.wake_at = again.into_iter().chain(look_at).min();
        if !vain.is_empty() {
            let hub = Arc::clone(self.hub);
            self.chores.spawn(async move {
                stream::iter(vain).for_each_concurrent(CONCURRENT, |task_id| hub.end_vain(task_id)).await;
            });
        }
        for plan in plans {
            let hub = Arc::clone(self.hub);
            self.offers.spawn(async move { offer::offer(&hub, plan).await });
        }
        trimmed
    }

    /// The next page of a search for tasks that are not in memory, if it is time for one.
    async fn search(&mut self) -> Option<Page> {
        let overflow = &mut self.overflow;
        if !overflow.any {
            overflow.search = None;
            return None;
        }
        let now = Instant::now();
        if overflow.search.is_none() {
            if !overflow.wanted {
                return None;
            }
            if let Some(not_before) = overflow.not_before.filter(|not_before| *not_before > now) {
                self.wake_at = Some(self.wake_at.map_or(not_before, |at| at.min(not_before)));
                return None;
            }
            overflow.wanted = false;
            overflow.not_before = Some(now + SEARCH_GAP);
            overflow.search = Some(Search { cursor: None, found: 0, whole: true });
        }
        let cursor = overflow.search?.cursor;
        let totals = self.hub.totals();
        if totals.slots <= totals.slots_busy && totals.waiting > self.hub.config.max_waiting as u64 / 2 {
            return None;
        }
        match self.hub.market.store().open_tasks(cursor, PAGE).await {
            Ok(page) => Some(page),
            Err(error) => {
                tracing::warn!(%error, "open tasks not read");
                self.wake_at = Some(now + RETRY);
                None
            }
        }
    }

    /// Releases the attempts of hosts that stayed away beyond their grace.
    fn release_forsaken(&mut self) {
        let (forsaken, next) = self.hub.floor().forsaken(Instant::now());
        if let Some(next) = next {
            self.wake_at = Some(self.wake_at.map_or(next, |at| at.min(next)));
        }
        if forsaken.is_empty() {
            return;
        }
        let hub = Arc::clone(self.hub);
        self.chores.spawn(async move {
            let hub = &hub;
            stream::iter(forsaken)
                .for_each_concurrent(CONCURRENT, |(task_id, attempt)| hub.give_up(task_id, attempt))
                .await;
        });
    }

    /// Takes a change up, and others that are there already. `Err` where some were missed.
    fn follow(
        &mut self,
        mut change: Arc<Change>,
        changes: &mut Receiver<Arc<Change>>,
    ) -> Result<(), TryRecvError> {
        for _ in 1..BATCH {
            self.take_up(&change);
            change = match changes.try_recv() {
                Ok(next) => next,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return Ok(()),
                Err(error @ TryRecvError::Lagged(_)) => return Err(error),
            };
        }
        self.take_up(&change);
        Ok(())
    }

    fn take_up(&mut self, change: &Change) {
        // What another relay committed is told with the task as it is by now: who ended it then is not this event's to say.
        let is_current = change.recorded.version == change.record.version;
        let word = Some(change.recorded.event.word()).filter(|_| is_current);
        self.hub.absorb(&change.record, change.node, word);
        self.overflow.wanted |= change.record.lease().is_none() && change.record.attempts > 0;
    }

    /// Brings the floor up to date from the store: at the start, and when changes were missed.
    async fn resync(&mut self) {
        loop {
            match self.hub.stop.run_until_cancelled(self.read_all()).await {
                None | Some(Ok(())) => return,
                Some(Err(error)) => {
                    tracing::error!(%error, "the store cannot be read");
                    if self.hub.stop.run_until_cancelled(sleep(RETRY)).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    async fn read_all(&mut self) -> Result<(), StoreError> {
        let store = self.hub.market.store();
        let mut unseen: HashSet<TaskId> = self.hub.floor().known();
        let mut cursor = None;
        loop {
            let page = store.held(None, cursor, PAGE).await?;
            self.absorb(&page, &mut unseen);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        loop {
            let page = store.open_tasks(cursor, PAGE).await?;
            self.absorb(&page, &mut unseen);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
            if self.hub.totals().waiting >= self.hub.config.max_waiting as u64 {
                self.overflow.any = true;
                break;
            }
        }
        for id in unseen {
            if let Some(stored) = store.task(id).await? {
                self.hub.absorb(&stored.record, stored.node, None);
            }
        }
        Ok(())
    }

    fn absorb(&self, page: &Page, unseen: &mut HashSet<TaskId>) {
        for stored in &page.tasks {
            unseen.remove(&stored.record.id);
            self.hub.absorb(&stored.record, stored.node, None);
        }
    }
}

#[cfg(test)]
mod tests;
