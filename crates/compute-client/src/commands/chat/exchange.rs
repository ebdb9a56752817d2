//! Exchanges on disk: a request and its answer to the byte, and the provider's receipt, so that anybody can check it.

use std::path::Path;

use rpc::inference::ReceiptView;

use crate::failure::{Context as _, Failure, Outcome};
use crate::inference::Answer;
use crate::ui::Ui;

/// The longest id that names files, in bytes.
const MAX_ID_BYTES: usize = 128;

/// Writes an exchange to a folder, in files that are named by the request's id and that only their owner can read.
pub(super) fn save(
    folder: &Path,
    request: &[u8],
    answer: &Answer,
    record: Option<&ReceiptView>,
    ui: &Ui,
) -> Outcome {
    let id = &answer.request_id;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if id.is_empty() || id.len() > MAX_ID_BYTES || !id.bytes().all(is_name) {
        return Err(Failure::failed(
            "the exchange is not saved: the relay's id of the request can name no file",
        ));
    }
    let path = |kind: &str| folder.join(format!("{id}.{kind}"));
    let write = |kind: &str, bytes: &[u8]| {
        daemon::private_file::create(&path(kind), bytes).or_failed(path(kind).display())
    };
    write("request.json", request)?;
    write("response.bin", &answer.bytes)?;
    let Some(record) = record else {
        ui.warn(format_args!(
            "saved the exchange; its receipt is not there yet: zorai-compute verify --receipt {id} --request {} --response {}",
            path("request.json").display(),
            path("response.bin").display()
        ));
        return Ok(());
    };
    write("receipt.json", &serde_json::to_vec_pretty(record).map_err(Failure::failed)?)?;
    ui.say(format_args!(
        "saved the exchange; check it: zorai-compute verify {} --request {} --response {}",
        path("receipt.json").display(),
        path("request.json").display(),
        path("response.bin").display()
    ));
    Ok(())
}
