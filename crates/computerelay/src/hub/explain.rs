//! Why a task waits, in plain sentences.

use std::collections::BTreeMap;

use rpc::failure::{self, hint};
use rpc::tasks::{Explanation, PendingFact, ProviderFit};
use store::StoredTask;
use taskmarket::{Status, TaskRecord};
use tokio::time::Instant;

use super::Hub;
use super::view::WAITS;

/// The most reasons that a summary names.
const MAX_REASONS: usize = 3;

impl Hub {
    /// Says where a task stands: why it waits, with what keeps it from each host that is online, or who has it.
    pub(crate) fn explain(&self, stored: &StoredTask) -> Explanation {
        let record = &stored.record;
        let status = record.status();
        let (offered_to, is_agreed, providers) = match status {
            Status::Open => {
                let floor = self.floor();
                (floor.offered_to(record.id), floor.is_agreed(record), floor.fits(record, Instant::now()))
            }
            Status::Accepted
            | Status::Submitted
            | Status::Completed
            | Status::Disputed
            | Status::Resolved
            | Status::Cancelled
            | Status::Expired
            | Status::Failed => (None, false, Vec::new()),
        };
        let summary = match offered_to {
            Some(key) => format!("on offer to {} as attempt {}", key.provider, record.next_attempt()),
            None => match self.money_awaited(record) {
                Some(awaited) => awaited,
                None => summary(record, is_agreed, &providers, self.totals().providers_online),
            },
        };
        Explanation { task_id: record.id, status, summary, providers }
    }
}

impl Hub {
    /// What an open task waits for on the chain, if anything.
    fn money_awaited(&self, record: &TaskRecord) -> Option<String> {
        if record.status() != Status::Open || !record.domain.is_settled() {
            return None;
        }
        let Some(chain) = self.market.chain().filter(|chain| chain.domain() == record.domain) else {
            return Some("waiting for the money: this relay does not follow the task's escrow".to_owned());
        };
        if let Some(trouble) = chain.trouble() {
            return Some(format!("waiting for the chain: {trouble}"));
        }
        if record.is_reserved_out() {
            let attempt = record.next_attempt();
            let why = format!("{} acceptances of attempt {attempt} came to nothing", record.reservations);
            return Some(format!("waiting for the chain: {why}; only the chain gives it out"));
        }
        record.awaits_money().then(|| match chain.pending(record) {
            Some(PendingFact { fact, confirmations, needed }) => format!(
                "waiting for the money: {} has {confirmations} of {needed} confirmations",
                fact.change.name()
            ),
            None => format!(
                "waiting for the money: {} on chain {} does not hold the budget yet",
                record.domain.verifying_contract, record.domain.chain_id
            ),
        })
    }
}

/// `online` may be more hosts than are named.
fn summary(record: &TaskRecord, is_agreed: bool, providers: &[ProviderFit], online: u64) -> String {
    let attempt = record.attempts;
    let by = || record.provider.map_or_else(String::new, |provider| format!(" by {}", provider.0));
    match record.status() {
        Status::Open => match failure::agreed(record).filter(|_| is_agreed) {
            Some(fault) => format!(
                "two providers say that it fails anywhere ({}): nobody is asked any more{}",
                fault.code,
                if record.domain.is_settled() { "; cancel it on chain to have the budget back" } else { "" }
            ),
            None => waiting(providers, online),
        },
        Status::Accepted => format!("accepted{} attempt {attempt}", by()),
        Status::Submitted => format!("result submitted{} in attempt {attempt}; it may be disputed", by()),
        Status::Completed => format!("completed{} in attempt {attempt}", by()),
        Status::Disputed => format!("the result of attempt {attempt}{} is disputed", by()),
        Status::Resolved => format!("the dispute about attempt {attempt}{} is resolved", by()),
        Status::Cancelled => "cancelled by its requester".to_owned(),
        Status::Expired => "its deadline passed without a result".to_owned(),
        Status::Failed => match &record.failure {
            Some(failure) => {
                let is_early = attempt < record.task.config.max_attempts && !record.domain.is_settled();
                let hint = hint(&failure.code).map(|hint| format!(": {hint}")).unwrap_or_default();
                if is_early {
                    return ended(record, &failure.code, &hint);
                }
                format!("all {attempt} attempts failed, the last{} with {}{hint}", by(), failure.code)
            }
            None => format!("all {attempt} attempts failed"),
        },
    }
}

/// What is said of a task that the relay ended before its attempts were spent.
fn ended(record: &TaskRecord, code: &str, hint: &str) -> String {
    let said = record.faults.iter().filter(|fault| fault.code == code);
    let by: Vec<_> = said.map(|fault| fault.provider.to_string()).collect();
    let by = by.join(" and ");
    format!(
        "ended after {} of {} attempts, as it fails anywhere: {code} by {by}{hint}",
        record.attempts, record.task.config.max_attempts
    )
}

fn waiting(providers: &[ProviderFit], online: u64) -> String {
    if providers.is_empty() {
        return "no provider is online".to_owned();
    }
    let online = match online {
        1 => "1 provider online".to_owned(),
        more => format!("{more} providers online"),
    };
    let fit = providers.iter().filter(|provider| provider.exclusions.is_empty()).count();
    if fit > 0 {
        return format!("{online}, {fit} fit: an offer is about to go out");
    }
    let mut only = providers.iter().filter(|provider| provider.exclusions.len() == 1);
    let again = only.find_map(|provider| provider.exclusions.first().filter(|why| why.starts_with(WAITS)));
    if let Some(again) = again {
        return again.clone();
    }
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in providers.iter().flat_map(|provider| provider.exclusions.first()) {
        *reasons.entry(reason).or_default() += 1;
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let named: Vec<String> = reasons
        .iter()
        .take(MAX_REASONS)
        .map(|(reason, count)| if *count > 1 { format!("{reason} ({count})") } else { (*reason).to_owned() })
        .collect();
    let more = if reasons.len() > MAX_REASONS { ", and more" } else { "" };
    format!("{online}, none fits: {}{more}", named.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use taskmarket::{Address, Bytes32};

    fn fit(exclusions: &[&str]) -> ProviderFit {
        let exclusions = exclusions.iter().map(|text| (*text).to_owned()).collect();
        ProviderFit { provider: Address::ZERO, node_id: Bytes32::default(), exclusions }
    }

    #[test]
    fn summaries_name_the_commonest_reasons_first() {
        assert_eq!(waiting(&[], 0), "no provider is online");
        assert_eq!(
            waiting(&[fit(&["0 of 2 slots free"])], 1),
            "1 provider online, none fits: 0 of 2 slots free"
        );
        let no_gpu = fit(&["has no GPU named A100", "0 of 2 slots free"]);
        let four = [fit(&["b"]), no_gpu.clone(), fit(&["c"]), no_gpu, fit(&["d"])];
        assert_eq!(
            waiting(&four, 5),
            "5 providers online, none fits: has no GPU named A100 (2); b; c, and more"
        );
        let again = "waits 3 s before trying 0x01 again (attempt 2 failed: bad_model)";
        assert_eq!(waiting(&[fit(&["x"]), fit(&[again])], 2), again);
        assert_eq!(
            waiting(&[fit(&["x"]), fit(&[])], 2),
            "2 providers online, 1 fit: an offer is about to go out"
        );
    }
}
