//! What to pay for gas (EIP-1559), within a cap.

use super::entry::Signed;

/// What is offered when a node does not say what is usual, for each unit of gas.
const USUAL_TIP: u64 = 1_000_000_000;
/// Nodes take a replacement only if both fees rise by a tenth at least; an eighth is what the field uses.
const BUMP_DIVISOR: u64 = 8;

/// An offer for each unit of gas, in the native coin's smallest unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fees {
    /// The most in all.
    pub(super) max: u64,
    /// The most of that that goes to the block's maker.
    pub(super) tip: u64,
}

/// Fees cannot be had within the cap; this much would be needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AboveCap(pub(super) u64);

impl Fees {
    /// Enough for the base fee to double, or as much of that as the cap allows while the next block would still take it.
    pub(super) fn choose(base: u64, tip: Option<u64>, cap: u64) -> Result<Self, AboveCap> {
        let tip = tip.unwrap_or(USUAL_TIP);
        let least = base.saturating_add(tip.min(1));
        if least > cap {
            return Err(AboveCap(least));
        }
        let max = base.saturating_mul(2).saturating_add(tip).min(cap);
        Ok(Self { max, tip: tip.min(max) })
    }

    /// What replaces `before`: an eighth more of both, and no less than what is usual now.
    pub(super) fn bump(before: &Signed, usual: Self, cap: u64) -> Result<Self, AboveCap> {
        let max = raised(before.max_fee_per_gas).max(usual.max.min(cap));
        let tip = raised(before.max_priority_fee_per_gas).max(usual.tip).min(max);
        if max > cap {
            return Err(AboveCap(max));
        }
        Ok(Self { max, tip })
    }
}

fn raised(fee: u64) -> u64 {
    fee.saturating_add(fee.div_ceil(BUMP_DIVISOR).max(1))
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{B256, Bytes};

    use super::*;

    fn before(max: u64, tip: u64) -> Signed {
        Signed {
            hash: B256::ZERO,
            raw: Bytes::new(),
            max_fee_per_gas: max,
            max_priority_fee_per_gas: tip,
            signed_at: 0,
        }
    }

    #[test]
    fn offers_stay_within_the_cap() {
        assert_eq!(Fees::choose(100, Some(7), 1000), Ok(Fees { max: 207, tip: 7 }));
        assert_eq!(Fees::choose(100, Some(7), 150), Ok(Fees { max: 150, tip: 7 }));
        assert_eq!(Fees::choose(100, Some(700), 150), Ok(Fees { max: 150, tip: 150 }));
        assert_eq!(Fees::choose(100, Some(7), 100), Err(AboveCap(101)));
        assert_eq!(Fees::choose(100, None, 2 * USUAL_TIP), Ok(Fees { max: 200 + USUAL_TIP, tip: USUAL_TIP }));
    }

    #[test]
    fn replacements_rise_by_an_eighth_up_to_the_cap() {
        let usual = Fees { max: 100, tip: 1 };
        assert_eq!(Fees::bump(&before(160, 8), usual, 1000), Ok(Fees { max: 180, tip: 9 }));
        assert_eq!(
            Fees::bump(&before(160, 8), Fees { max: 500, tip: 50 }, 1000),
            Ok(Fees { max: 500, tip: 50 })
        );
        assert_eq!(
            Fees::bump(&before(160, 8), Fees { max: 500, tip: 50 }, 200),
            Ok(Fees { max: 200, tip: 50 })
        );
        assert_eq!(Fees::bump(&before(160, 8), usual, 179), Err(AboveCap(180)));
        assert_eq!(Fees::bump(&before(0, 0), Fees { max: 0, tip: 0 }, 5), Ok(Fees { max: 1, tip: 1 }));
    }
}
