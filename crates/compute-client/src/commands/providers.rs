//! `providers`: who is online; of one provider, when it was here, what became of what it took, and its connections.

use rpc::link::{DeviceKind, DeviceView};
use rpc::relay::{
    ProviderList, ProviderReport, ProviderView, ReportWindow, SessionList, SessionView, Spread, Uptime,
};
use serde_json::json;
use taskmarket::Address;

use crate::cli::{Global, parse_address};
use crate::failure::Outcome;
use crate::follow::age;
use crate::listing::Listing;
use crate::relay::Relay;
use crate::ui::{Ui, clean, count};

/// The columns' titles.
const TITLES: [&str; 6] = ["PROVIDER", "DEVICES", "RUNTIMES", "BUSY", "ONLINE FOR", "TAKES TASKS"];

/// Which providers.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show how one provider did over the last hour, 24 hours and 30 days, and its connections, newest first
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
            let list = online(&relay).await?;
            if ui.json {
                return ui.print_json(&list);
            }
            if list.providers.is_empty() {
                ui.say("no provider is online");
            }
            let rows: Vec<_> = list.providers.iter().map(row).collect();
            let mut list = Listing::new(TITLES, ui);
            list.show(&rows)?;
            list.note("busy: tasks that run, of as many as can run at once; memory of GPUs in MiB");
            Ok(())
        }
        Some(Command::Show { provider }) => {
            let report: ProviderReport = relay.get(&format!("v1/providers/{provider}")).await?;
            let list: SessionList = relay.get(&format!("v1/providers/{provider}/sessions")).await?;
            if ui.json {
                return ui.print_json(&json!({ "report": report, "sessions": list.sessions }));
            }
            report.windows.iter().try_for_each(|window| show_window(window, ui))?;
            for session in &list.sessions {
                let end = match (session.disconnected_at, &session.reason) {
                    (Some(at), Some(reason)) => format!("until {at} ({})", clean(reason)),
                    (Some(at), None) => format!("until {at}"),
                    (None, _) => "online".to_owned(),
                };
                let (generation, since) = (session.generation, session.connected_at);
                let carried = carried(session);
                ui.print(format_args!("{}  #{generation}  since {since}  {end}{carried}", session.node_id))?;
            }
            if list.next_cursor.is_some() {
                ui.say("there are older connections");
            }
            Ok(())
        }
    }
}

/// All hosts that are online, page by page.
pub(super) async fn online(relay: &Relay) -> Outcome<ProviderList> {
    let mut list: ProviderList = relay.get("v1/providers?limit=1000").await?;
    while let Some(cursor) = list.next_cursor.take() {
        let page: ProviderList = relay.get(&format!("v1/providers?limit=1000&cursor={cursor}")).await?;
        if page.providers.is_empty() {
            break;
        }
        list.providers.extend(page.providers);
        list.next_cursor = page.next_cursor;
    }
    Ok(list)
}

/// What a provider did in a window of time, in three lines and one for each host where it has several.
fn show_window(window: &ReportWindow, ui: &Ui) -> Outcome {
    let name = match window.window_secs {
        3600 => "last hour".to_owned(),
        86_400 => "last 24 h".to_owned(),
        2_592_000 => "last 30 d".to_owned(),
        secs => format!("last {secs} s"),
    };
    let partly = if window.complete { "" } else { "  (not all of it was counted)" };
    let connects = count(window.connects, "connection");
    let again = match window.reconnects {
        0 => String::new(),
        reconnects => format!(", {reconnects} of them again"),
    };
    ui.print(format_args!("{name}  up {}  {connects}{again}{partly}", share(&window.uptime)))?;
    let counts = &window.attempts;
    ui.print(format_args!(
        "  attempts: {} accepted, {} proven, {} failed, {} timed out, {} lost, {} cancelled, {} running",
        counts.accepted,
        counts.proven,
        counts.failed,
        counts.timed_out,
        counts.lost,
        counts.cancelled,
        counts.running
    ))?;
    ui.print(format_args!(
        "  dispatch: {}; run: {}",
        spread(window.dispatch_ms, "ms"),
        spread(window.run_secs, "s")
    ))?;
    if window.hosts.len() > 1 {
        for host in &window.hosts {
            let (node, again) = (host.node_id, count(host.reconnects, "time"));
            ui.print(format_args!("  host {node}  up {}  connected again {again}", share(&host.uptime)))?;
        }
    }
    Ok(())
}

fn share(uptime: &Uptime) -> String {
    let (whole, part) = (uptime.uptime_bps / 100, uptime.uptime_bps % 100);
    format!("{whole}.{part:02} % ({} of {} s)", uptime.up_secs, uptime.observed_secs)
}

fn spread(spread: Option<Spread>, unit: &str) -> String {
    match spread {
        Some(Spread { median, p99, .. }) => format!("median {median} {unit}, p99 {p99} {unit}"),
        None => "none".to_owned(),
    }
}

/// What became of attempts with a session, where there is anything to say.
fn carried(session: &SessionView) -> String {
    match (session.resumed_attempts, session.lost_attempts) {
        (0, 0) => String::new(),
        (resumed, lost) => format!("  {} resumed, {lost} lost", count(resumed, "attempt")),
    }
}

fn row(view: &ProviderView) -> [String; 6] {
    let devices: Vec<String> = view.metadata.devices.iter().map(device).collect();
    let runtimes: Vec<&str> = view.metadata.runtimes.iter().map(|runtime| runtime.as_str()).collect();
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    [
        view.provider.to_string(),
        or_dash(devices.join(", ")),
        or_dash(runtimes.join("+")),
        format!("{}/{}", view.busy, view.metadata.slots),
        age(view.connected_at),
        view.closed_for.as_deref().map_or_else(|| "yes".to_owned(), |why| format!("no: {}", clean(why))),
    ]
}

fn device(device: &DeviceView) -> String {
    match device.kind {
        DeviceKind::Gpu => format!("{} ({} MiB)", clean(&device.name), device.vram_mb),
        DeviceKind::Cpu => format!("CPU {}", clean(&device.name)),
    }
}
