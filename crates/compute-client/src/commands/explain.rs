//! `explain`: why a task waits.

use crate::cli::{Global, TaskArgs};
use crate::failure::Outcome;
use crate::ui::{Ui, clean};

/// Says of each provider what keeps the task from it.
pub(crate) async fn run(global: &Global, args: &TaskArgs, ui: &Ui) -> Outcome {
    let explanation = global.reading_relay(ui).await?.explain(args.id).await?;
    if ui.json {
        return ui.print_json(&explanation);
    }
    ui.print(clean(&explanation.summary))?;
    for fit in &explanation.providers {
        let why: Vec<String> = fit.exclusions.iter().map(|why| clean(why)).collect();
        let why = if why.is_empty() { "fits".to_owned() } else { why.join("; ") };
        ui.print(format_args!("{}  {}  {why}", fit.provider, fit.node_id))?;
    }
    Ok(())
}
