//! `providers`: who is online, and a provider's connections.

use rpc::link::{DeviceKind, DeviceView};
use rpc::relay::{ProviderList, ProviderView, SessionList};
use taskmarket::Address;

use crate::cli::{Global, parse_address};
use crate::failure::Outcome;
use crate::follow::ago;
use crate::ui::{Ui, clean};

/// Which providers.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show one provider's connections, newest first
    Show {
        /// Its address
        #[arg(value_name = "ADDRESS", value_parser = parse_address)]
        provider: Address,
    },
}

/// Lists providers.
pub(crate) async fn run(global: &Global, args: &Args, ui: &Ui) -> Outcome {
    let relay = global.relay(ui)?;
    match &args.command {
        None => {
            let list: ProviderList = relay.get("v1/providers").await?;
            if ui.json {
                return ui.print_json(&list);
            }
            if list.providers.is_empty() {
                ui.say("no provider is online");
            }
            list.providers.iter().try_for_each(|view| ui.print(row(view)))
        }
        Some(Command::Show { provider }) => {
            let list: SessionList = relay.get(&format!("v1/providers/{provider}/sessions")).await?;
            if ui.json {
                return ui.print_json(&list);
            }
            for session in &list.sessions {
                let end = match (session.disconnected_at, &session.reason) {
                    (Some(at), Some(reason)) => format!("until {at} ({})", clean(reason)),
                    (Some(at), None) => format!("until {at}"),
                    (None, _) => "online".to_owned(),
                };
                let (generation, since) = (session.generation, session.connected_at);
                ui.print(format_args!("{}  #{generation}  since {since}  {end}", session.node_id))?;
            }
            Ok(())
        }
    }
}

fn row(view: &ProviderView) -> String {
    let devices: Vec<String> = view.metadata.devices.iter().map(device).collect();
    let runtimes: Vec<&str> = view.metadata.runtimes.iter().map(|runtime| runtime.as_str()).collect();
    format!(
        "{}  {}  {}  {}/{} busy  online since {}",
        view.provider,
        devices.join(", "),
        runtimes.join("+"),
        view.busy,
        view.metadata.slots,
        ago(view.connected_at)
    )
}

fn device(device: &DeviceView) -> String {
    match device.kind {
        DeviceKind::Gpu => format!("{} ({} MiB)", clean(&device.name), device.vram_mb),
        DeviceKind::Cpu => format!("CPU {}", clean(&device.name)),
    }
}
