//! What the driver of a settled attempt has to do with its money: it begins once the chain binds the provider, and stops when there is
//! nothing to be had any more. For unsettled attempts all of this does nothing.

use std::sync::Arc;
use std::time::Duration;

use rpc::tasks::{FailureView, SignedMutation};
use taskmarket::{ComputeProof, Timestamp};
use tokio::sync::watch;

use crate::agent::now;
use crate::driver::Driver;
use crate::money::{Money, Standing};
use crate::offer::compute_request;

/// Where an attempt's money stands, as its driver follows it.
pub(crate) struct Followed {
    standing: Option<watch::Receiver<Standing>>,
    /// Whether the node waits for the word to begin.
    held: bool,
}

impl Driver {
    /// The money of this attempt, if it is settled and this agent keeps it.
    pub(crate) fn money(&self) -> Option<&Money> {
        self.shared.money.as_deref().filter(|_| self.entry.domain.is_settled())
    }

    /// Completes once somebody calls the attempt off for good: with a result that is to be paid for it goes on.
    pub(crate) fn called_off(&self) -> impl Future<Output = ()> + use<> {
        let (shared, key) = (Arc::clone(&self.shared), self.entry.key());
        let (called_off, settled) = (self.place.called_off.clone(), self.entry.domain.is_settled());
        async move {
            called_off.cancelled().await;
            if let Some(money) = shared.money.as_ref().filter(|_| settled)
                && money.is_proving(&key).await
            {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Begins to follow the money; `None` where its claim has ended.
    pub(crate) async fn watch_money(&self) -> Option<Followed> {
        let Some(money) = self.money() else { return Some(Followed { standing: None, held: false }) };
        let standing = money.standing(&self.entry.key()).await?;
        Some(Followed { standing: Some(standing), held: false })
    }

    /// Asks for payment. `Err` where that cannot be written down now.
    pub(crate) async fn ask_payment(&self, proof: &SignedMutation<ComputeProof>) -> Result<(), String> {
        let Some(money) = self.money() else { return Ok(()) };
        money.prove(&self.entry.key(), proof.clone()).await.map_err(|error| error.to_string())
    }

    /// Lets go of the money, unless a result is to be paid for. What cannot be written down now is seen to after the next start.
    pub(crate) async fn leave_money(&self, failure: FailureView) {
        if let Some(money) = self.money()
            && let Err(error) = money.give_up(&self.entry.key(), failure).await
        {
            tracing::error!(attempt = %self.name(), %error, "the claim cannot be given up");
        }
    }

    /// How long the proof may wait before it must go to the chain, though its result has not reached the relay; `None` where nothing
    /// presses.
    pub(crate) async fn pressed_in(&self) -> Option<Duration> {
        let money = self.money()?;
        let standing = money.standing(&self.entry.key()).await?;
        let Standing::Bound(until) = *standing.borrow() else { return None };
        let left = until.since(now()).saturating_sub(2 * money.fail_margin_secs());
        Some(Duration::from_secs(left))
    }
}

impl Followed {
    /// Until when the node may work. `Err` where the money says that it may not, with why the attempt was given up, if it was.
    pub(crate) fn lease(&mut self, driver: &Driver) -> Result<Timestamp, Option<FailureView>> {
        let Some(standing) = &mut self.standing else { return Ok(driver.lease_until()) };
        match &*standing.borrow_and_update() {
            Standing::Reserved => Ok(driver.lease_until()),
            Standing::Bound(until) => Ok(*until),
            Standing::GivenUp(failure) => Err(Some(failure.clone())),
            Standing::Over => Err(None),
        }
    }

    /// Completes at the next change of the money's standing.
    pub(crate) async fn changed(&mut self) {
        match &mut self.standing {
            // The sender is gone with the claim: its last word was seen, or is there to be seen.
            Some(standing) => {
                if standing.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            None => std::future::pending().await,
        }
    }

    /// Notes whether the node waits for the word to begin.
    pub(crate) fn is_held(&mut self, held: bool) -> bool {
        self.held = held;
        held
    }

    /// Asks to be bound while the node waits, and lets it begin once that is so. What fails is tried again at the next news.
    pub(crate) async fn follow(&self, driver: &Driver) {
        let (Some(standing), Some(money), true) = (&self.standing, driver.money(), self.held) else { return };
        let is_bound = matches!(*standing.borrow(), Standing::Bound(_));
        let done = if is_bound {
            let request = compute_request(&driver.shared, &driver.entry, false);
            driver.shared.node.compute(&request).await.map(drop).map_err(|error| error.to_string())
        } else {
            money.bind(&driver.entry.key()).await.map_err(|error| error.to_string())
        };
        if let Err(error) = done {
            tracing::warn!(attempt = %driver.name(), error, "the attempt does not go on yet");
        }
    }
}
