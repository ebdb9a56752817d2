//! `models`: what models are served, and on what terms.

use rpc::inference::{InferenceKind, ModelList, ModelView};

use crate::cli::Global;
use crate::failure::Outcome;
use crate::listing::Listing;
use crate::relay::segment;
use crate::ui::{Ui, clean};

/// Which models.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One model, by its name [default: all]
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// The columns' titles.
const TITLES: [&str; 7] = ["MODEL", "HOSTS", "CONTEXT", "PRICE IN", "PRICE OUT", "QUANTIZATION", "FOR"];

/// Lists models.
pub(crate) async fn run(global: &Global, args: &Args, ui: &Ui) -> Outcome {
    let relay = global.relay(ui)?;
    let models = match &args.name {
        Some(name) => vec![relay.get::<ModelView>(&format!("v1/models/{}", segment(name))).await?],
        None => relay.get::<ModelList>("v1/models").await?.data,
    };
    if ui.json {
        return match (&args.name, models.first()) {
            (Some(_), Some(model)) => ui.print_json(model),
            (Some(_) | None, _) => ui.print_json(&models),
        };
    }
    if models.is_empty() {
        ui.say("no provider serves a model just now");
        return Ok(());
    }
    let rows: Vec<_> = models.iter().map(row).collect();
    let mut list = Listing::new(TITLES, ui);
    list.show(&rows)?;
    list.note("context in tokens; prices: the lowest for a million tokens, in the token's smallest unit");
    Ok(())
}

fn row(model: &ModelView) -> [String; 7] {
    let kinds: Vec<&str> = model.kinds.iter().map(|kind| name(*kind)).collect();
    let quantizations: Vec<String> = model.quantizations.iter().map(|name| clean(name)).collect();
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    [
        clean(&model.id),
        model.hosts.to_string(),
        or_dash(model.context_tokens.map(|tokens| tokens.to_string()).unwrap_or_default()),
        model.prompt_price.to_string(),
        model.completion_price.to_string(),
        or_dash(quantizations.join("+")),
        or_dash(kinds.join("+")),
    ]
}

fn name(kind: InferenceKind) -> &'static str {
    match kind {
        InferenceKind::Chat => "chat",
        InferenceKind::Completions => "completions",
        InferenceKind::Embeddings => "embeddings",
        InferenceKind::Responses => "responses",
    }
}

#[cfg(test)]
mod tests {
    use taskmarket::{Amount, U256};

    use super::*;

    #[test]
    fn a_row_says_what_is_known() {
        let mut model = ModelView {
            id: "org/tiny\u{1b}[2J".to_owned(),
            object: "model".to_owned(),
            created: 0,
            owned_by: "zorai".to_owned(),
            hosts: 2,
            context_tokens: Some(4096),
            kinds: InferenceKind::ALL.to_vec(),
            quantizations: vec!["q4_k_m".to_owned(), "q8_0".to_owned()],
            prompt_price: Amount(U256::from(5)),
            completion_price: Amount(U256::from(7)),
        };
        assert_eq!(
            row(&model).join(" "),
            "org/tiny[2J 2 4096 5 7 q4_k_m+q8_0 chat+completions+embeddings+responses"
        );
        model.context_tokens = None;
        model.quantizations.clear();
        model.kinds.clear();
        assert_eq!(row(&model).join(" "), "org/tiny[2J 2 - 5 7 - -");
    }
}
