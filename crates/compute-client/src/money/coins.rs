//! Amounts for people.

use escrow::Chain;
use taskmarket::{Address, Amount, U256};

use crate::failure::Outcome;
use crate::money::chain_failure;
use crate::ui::clean;

/// The native coin's decimals, on every chain of this kind.
const NATIVE_DECIMALS: u8 = 18;
/// More decimals than any token has a use for; what says more is not believed.
const MOST_DECIMALS: u8 = 36;

/// How amounts of one token are written.
#[derive(Debug, Clone)]
pub(crate) struct Coins {
    name: String,
    decimals: Option<u8>,
}

impl Coins {
    /// Asks the token for its name; the zero address is the chain's native coin.
    pub(crate) async fn of(chain: &Chain, token: Address) -> Outcome<Self> {
        if token.is_zero() {
            return Ok(Self::native());
        }
        let known = chain.token_name(token).await.map_err(chain_failure)?;
        Ok(match known.filter(|(_, decimals)| *decimals <= MOST_DECIMALS) {
            Some((symbol, decimals)) => {
                Self { name: format!("{} ({token})", clean(&symbol)), decimals: Some(decimals) }
            }
            None => Self { name: format!("of the token {token}"), decimals: None },
        })
    }

    /// The native coin.
    pub(crate) fn native() -> Self {
        Self { name: "of the chain's coin".to_owned(), decimals: Some(NATIVE_DECIMALS) }
    }

    /// An amount in whole units where the decimals are known, else in the smallest.
    pub(crate) fn show(&self, amount: Amount) -> String {
        match self.decimals {
            Some(decimals) => format!("{} {}", decimal(amount.0, decimals), self.name),
            None => format!("{amount} smallest units {}", self.name),
        }
    }
}

fn decimal(amount: U256, decimals: u8) -> String {
    let width = usize::from(decimals);
    let digits = format!("{amount:0>width$}", amount = amount.to_string(), width = width + 1);
    let (whole, part) = digits.split_at(digits.len() - width);
    let part = part.trim_end_matches('0');
    if part.is_empty() { whole.to_owned() } else { format!("{whole}.{part}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_in_whole_units() {
        for (amount, decimals, text) in [
            ("0", 18, "0"),
            ("1", 18, "0.000000000000000001"),
            ("10000000000000000", 18, "0.01"),
            ("1000000000000000000", 18, "1"),
            ("1500000", 6, "1.5"),
            ("7", 0, "7"),
        ] {
            assert_eq!(decimal(amount.parse::<Amount>().unwrap().0, decimals), text);
        }
    }
}
