//! Trustless gateways: <https://specs.ipfs.tech/http-gateways/trustless-gateway/>. What they send is checked block by block, and
//! one that lies or fails is passed over.

use bytes::Bytes;
use cid::Cid;
use futures_util::future::join_all;
use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue, StatusCode};
use reqwest::Response;
use url::Url;

use super::car::CarParser;
use super::unixfs::{is_block, knows_hash};
use crate::error::FetchError;
use crate::hops::{ChosenBy, Failure, Request, Web, next_piece, status_failure};
use crate::policy::FetchPolicy;

/// The most bytes of a block, whatever the policy says: twice what networks of IPFS carry.
const MAX_BLOCK_BYTES: u64 = 4 << 20;
const RAW_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.ipld.raw");
const CAR_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.ipld.car;version=1;order=dfs;dups=n");

/// One gateway, as one fetch knows it.
pub(crate) struct Gateway<'a> {
    url: &'a Url,
    /// How often it failed since it last served something.
    failures: u8,
    /// Whether it is asked no more.
    out: bool,
    /// What it did last that was wrong.
    pub(crate) note: Option<String>,
}

/// Why a gateway did not serve a block.
#[derive(Debug)]
pub(crate) enum Miss {
    /// It says that it does not have it.
    Lacks,
    /// Asking it again is of no use.
    Absent(String),
    /// It may later.
    Failed(String),
    /// It sent something else.
    Lied(String),
}

/// An archive on its way from a gateway.
pub(crate) struct Car {
    /// Which gateway sends it.
    pub(crate) gateway: usize,
    response: Response,
    parser: CarParser,
    /// How many more bytes it may have.
    budget: u64,
    /// How many blocks came of it.
    pub(crate) blocks: u64,
}

/// What one fetch asks gateways with.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub(crate) web: &'a Web,
    pub(crate) policy: &'a FetchPolicy,
    pub(crate) name: &'a str,
}

impl<'a> Gateway<'a> {
    pub(crate) fn new(url: &'a Url) -> Self {
        Self { url, failures: 0, out: false, note: None }
    }

    /// Whether it is still asked.
    pub(crate) fn is_in(&self, policy: &FetchPolicy) -> bool {
        !self.out && self.failures < policy.max_tries.max(1)
    }

    /// Its host, for messages; user-info and the rest of the URL stay out.
    pub(crate) fn host(&self) -> &str {
        self.url.host_str().unwrap_or("a gateway")
    }

    pub(crate) fn url(&self) -> &'a Url {
        self.url
    }

    /// It served something.
    pub(crate) fn served(&mut self) {
        self.failures = 0;
    }

    /// Keeps what it did wrong. One that lied is asked no more.
    pub(crate) fn missed(&mut self, miss: &Miss) {
        let note = match miss {
            Miss::Lacks => "it does not have it",
            Miss::Absent(note) => note,
            Miss::Failed(note) => {
                self.failures = self.failures.saturating_add(1);
                note
            }
            Miss::Lied(note) => {
                self.out = true;
                note
            }
        };
        tracing::warn!(gateway = self.host(), note, "an IPFS gateway did not serve what it was asked for");
        self.note = Some(note.to_owned());
    }
}

impl<'a> Asker<'a> {
    fn max_block_bytes(&self) -> u64 {
        self.policy.max_block_bytes.min(MAX_BLOCK_BYTES)
    }

    /// Asks for some blocks, one request for each, side by side.
    pub(crate) async fn blocks(&self, gateway: &Url, cids: &[Cid]) -> Vec<Result<Bytes, Miss>> {
        join_all(cids.iter().map(|cid| self.block(gateway, cid))).await
    }

    async fn block(&self, gateway: &Url, cid: &Cid) -> Result<Bytes, Miss> {
        let request = self.request(gateway, cid, "format=raw", RAW_TYPE);
        let bytes = self.web.small(self.policy, &request, self.max_block_bytes()).await.map_err(miss)?;
        if !is_block(cid, &bytes) {
            return Err(lie(cid));
        }
        Ok(bytes.into())
    }

    /// Asks for a whole tree, of at most `budget` bytes.
    pub(crate) async fn tree(
        &self,
        (index, gateway): (usize, &Url),
        cid: &Cid,
        budget: u64,
    ) -> Result<Car, Miss> {
        let request = self.request(gateway, cid, "format=car&dag-scope=all", CAR_TYPE);
        let response = self.web.send(self.policy, &request, &HeaderMap::new()).await.map_err(miss)?;
        if response.status() != StatusCode::OK {
            return Err(miss(status_failure(self.name, &response)));
        }
        Ok(Car {
            gateway: index,
            response,
            parser: CarParser::new(self.max_block_bytes()),
            budget,
            blocks: 0,
        })
    }

    /// The next block of an archive, checked; `None` at its end.
    pub(crate) async fn next(&self, car: &mut Car) -> Result<Option<(Cid, Bytes)>, Miss> {
        loop {
            if let Some((cid, block)) = car.parser.next().map_err(|fault| Miss::Lied(fault.to_string()))? {
                if !knows_hash(&cid) {
                    continue;
                }
                car.blocks += 1;
                return if is_block(&cid, &block) { Ok(Some((cid, block))) } else { Err(lie(&cid)) };
            }
            match next_piece(self.policy, self.name, &mut car.response).await.map_err(miss)? {
                Some(piece) => {
                    let Some(left) = car.budget.checked_sub(piece.len() as u64) else {
                        return Err(Miss::Lied("it sent more than the tree can have".to_owned()));
                    };
                    car.budget = left;
                    car.parser.push(&piece);
                }
                None if car.parser.is_whole() => return Ok(None),
                None => return Err(Miss::Failed("its archive broke off".to_owned())),
            }
        }
    }

    fn request(&self, gateway: &Url, cid: &Cid, query: &str, accept: HeaderValue) -> Request<'a> {
        let mut url = gateway.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["ipfs", &cid.to_string()]);
        }
        url.set_query(Some(query));
        let headers = HeaderMap::from_iter([(ACCEPT, accept)]);
        Request { name: self.name, url, chosen_by: ChosenBy::Operator, headers }
    }
}

fn lie(cid: &Cid) -> Miss {
    Miss::Lied(format!("it sent other bytes than those of {cid}"))
}

fn miss(failure: Failure) -> Miss {
    match failure {
        Failure::Final(FetchError::NotFound { .. }) => Miss::Lacks,
        Failure::Final(error) => Miss::Absent(reason(&error)),
        Failure::Passing(error, _) => Miss::Failed(reason(&error)),
    }
}

/// What the error says, without the reference that all of them begin with.
fn reason(error: &FetchError) -> String {
    match error {
        FetchError::Unreachable { reason, .. } => reason.clone(),
        FetchError::NotFound { .. } => "it does not have it".to_owned(),
        FetchError::TimedOut { after, .. } => format!("it was silent for {after:?}"),
        FetchError::TooLarge { .. } => "it sent a block larger than permitted".to_owned(),
        FetchError::ForbiddenAddress { host, .. } => format!("it redirects to {host}, which is not public"),
        FetchError::NotAllowed { reason, .. } => reason.clone(),
        FetchError::TooManyRedirects { .. } => "it redirects without end".to_owned(),
        FetchError::Unauthorized { status, .. } => format!("it refuses access ({status})"),
        FetchError::BadManifest { source, .. } => source.to_string(),
        FetchError::BadReference { .. }
        | FetchError::UnsupportedScheme { .. }
        | FetchError::HashMismatch { .. }
        | FetchError::CacheBusy { .. }
        | FetchError::Io { .. } => error.to_string(),
    }
}
