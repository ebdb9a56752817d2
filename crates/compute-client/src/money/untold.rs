//! Commands that do as much once more each time they are given, and are gone on with where one ended before it could tell what it did.

use escrow::tx::{Mined, Outbox, State};
use taskmarket::Timestamp;

use crate::failure::Outcome;
use crate::money::{outbox_failure, tokens};
use crate::ui::Ui;

/// What an earlier command of the same words has sent, and ended before it could tell.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Untold {
    /// Nothing: this one sends.
    Nothing,
    /// It is gone on with.
    OnItsWay,
    /// It is done, though endpoints may have forgotten its receipt: this one sends nothing.
    Done(Mined),
}

/// Looks for what is untold, and says so. What a reorganisation took back since is on its way again.
pub(crate) async fn untold(outbox: &Outbox, purpose: &str, ui: &Ui) -> Outcome<Untold> {
    tokens::recheck(outbox, purpose).await?;
    let Some(entry) = outbox.get(purpose).await.map_err(outbox_failure)? else { return Ok(Untold::Nothing) };
    let since = Timestamp::from_unix(entry.created_at);
    match entry.state {
        State::Failed(_) => Ok(Untold::Nothing),
        State::Done(mined) => {
            ui.warn(format_args!(
                "nothing was sent: the same command of {since}, which ended early, had done it; to do as much once more, give it again"
            ));
            Ok(Untold::Done(mined))
        }
        State::Planned { .. } | State::Signed(_) | State::Sent(_) | State::Mined { .. } => {
            ui.say(format_args!(
                "going on with the same command of {since}, which ended early; to do as much once more, give it again afterwards"
            ));
            Ok(Untold::OnItsWay)
        }
    }
}

/// What became of it is told: the same command is another one from now on.
pub(crate) async fn told(outbox: &Outbox, purpose: &str) -> Outcome {
    outbox.close(purpose).await.map_err(outbox_failure)
}
