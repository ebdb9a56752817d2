//! What the provider asks for a model's tokens.

use std::collections::BTreeMap;
use std::str::FromStr;

use rpc::inference::ModelOffer;
use taskmarket::Amount;

/// The name that stands for every model without a price of its own.
const EVERY_MODEL: &str = "*";

/// A model's price: `MODEL=PROMPT,COMPLETION`, each for a million tokens in the token's smallest unit. `*` is every model
/// without a price of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    model: String,
    prompt: Amount,
    completion: Amount,
}

/// Why a text is no price.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write MODEL=PROMPT,COMPLETION: two whole numbers, each for a million tokens")]
pub struct ParsePriceError;

/// The prices of all models. What has none is free.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prices(BTreeMap<String, (Amount, Amount)>);

impl FromStr for Price {
    type Err = ParsePriceError;

    fn from_str(text: &str) -> Result<Self, ParsePriceError> {
        // A model's id may hold an equals sign; a price does not.
        let (model, prices) = text.rsplit_once('=').ok_or(ParsePriceError)?;
        let (prompt, completion) = prices.split_once(',').ok_or(ParsePriceError)?;
        let amount = |text: &str| text.trim().parse::<Amount>().map_err(|_| ParsePriceError);
        if model.is_empty() {
            return Err(ParsePriceError);
        }
        Ok(Self { model: model.to_owned(), prompt: amount(prompt)?, completion: amount(completion)? })
    }
}

impl FromIterator<Price> for Prices {
    fn from_iter<I: IntoIterator<Item = Price>>(prices: I) -> Self {
        Self(prices.into_iter().map(|price| (price.model, (price.prompt, price.completion))).collect())
    }
}

impl Prices {
    /// An offer of the node's, with its price.
    pub(crate) fn put_on(&self, mut offer: ModelOffer) -> ModelOffer {
        if let Some((prompt, completion)) = self.0.get(&offer.id).or_else(|| self.0.get(EVERY_MODEL)) {
            (offer.prompt_price, offer.completion_price) = (*prompt, *completion);
        }
        offer
    }
}

#[cfg(test)]
mod tests {
    use taskmarket::U256;

    use super::*;

    #[test]
    fn prices_are_read_and_put_on_offers() {
        let prices: Prices =
            ["a/b=c:7b=1,2", "*=30,40"].iter().map(|text| text.parse::<Price>().unwrap()).collect();
        let priced = |id: &str| {
            let offer = prices.put_on(ModelOffer {
                id: id.to_owned(),
                engine: String::new(),
                quantization: String::new(),
                context_tokens: None,
                slots: 1,
                busy: 0,
                kinds: Vec::new(),
                warm: None,
                prompt_price: Amount::ZERO,
                completion_price: Amount::ZERO,
            });
            (offer.prompt_price.0, offer.completion_price.0)
        };
        assert_eq!(priced("a/b=c:7b"), (U256::from(1), U256::from(2)));
        assert_eq!(priced("other"), (U256::from(30), U256::from(40)));
        for wrong in ["", "a", "a=1", "a=1,2,3", "=1,2", "a=-1,2", "a=1.5,2"] {
            assert!(wrong.parse::<Price>().is_err(), "{wrong}");
        }
    }
}
